"""Several adapters' factors made into one pair, as PEFT's `add_weighted_adapter` and utils/merge_utils.py do."""

from collections.abc import Sequence
from functools import reduce
from math import sqrt
from typing import assert_never

import numpy as np

from ..checkpoints.operations import Combination, MajoritySign
from .arithmetic import Floats

Scaled = tuple[float, Floats, Floats]
"""(weight * scale, A [rank, in], B [out, rank])."""


def combined(how: Combination, factors: Sequence[Scaled]) -> tuple[Floats, Floats]:
    """(B, A) of one pair, with a scale of 1."""
    if how.method == "svd":
        return _clamped(_svd(factors, how.svd_rank), how.svd_clamp)
    if how.method == "cat":
        a = np.concatenate([a * np.float32(scale) for scale, a, _ in factors])
        return np.concatenate([b for _, _, b in factors], axis=1), a
    # The weight's sign goes to A alone: on both sides it would cancel.
    a_weights = [sqrt(abs(scale)) * (1 if scale >= 0 else -1) for scale, _, _ in factors]
    b_weights = [sqrt(abs(scale)) for scale, _, _ in factors]
    a = _mixed(how, [a for _, a, _ in factors], a_weights, 0)
    b = _mixed(how, [b for _, _, b in factors], b_weights, 1)
    return b, a


def _mixed(how: Combination, tensors: list[Floats], weights: list[float], side: int) -> Floats:
    scales = np.array(weights, np.float32).reshape(-1, *(1 for _ in tensors[0].shape))
    stack = np.stack(tensors)
    match how.method:
        case "linear":
            return (stack * scales).sum(axis=0)
        case "magnitude_prune":
            return (_largest(stack, how.density) * scales).sum(axis=0)
        case "dare_linear":
            return (_dropped(stack, how, side) * scales).sum(axis=0)
        case "ties":
            return _elected(_largest(stack, how.density), scales, how.majority_sign_method)
        case "dare_ties":
            return _elected(_dropped(stack, how, side), scales, how.majority_sign_method)
        case "svd" | "cat":
            raise AssertionError(f"{how.method} does not mix factors")
        case _:
            assert_never(how.method)


def _largest(stack: Floats, density: float) -> Floats:
    """Of each tensor the share `density` of its values, the largest; of equal ones the first."""
    if density >= 1:
        return stack
    kept = np.zeros(stack.shape, np.float32)
    count = int(density * stack[0].size)
    for values, room in zip(stack, kept, strict=True):
        order = np.argsort(-np.abs(values).reshape(-1), kind="stable")[:count]
        room.reshape(-1)[order] = values.reshape(-1)[order]
    return kept


def _dropped(stack: Floats, how: Combination, side: int) -> Floats:
    """Each value kept by a chance of `density`, and then scaled up by it."""
    if how.density >= 1:
        return stack
    chance = np.random.default_rng([*how.seed, side])
    kept = chance.random(stack.shape) < how.density
    return (stack * kept) / np.float32(how.density)


def _elected(stack: Floats, scales: Floats, method: MajoritySign) -> Floats:
    """The mean of the values whose sign is that of the majority."""
    signs = np.sign(stack)
    majority = np.where((stack if method == "total" else signs).sum(axis=0) >= 0, 1, -1)
    agrees = signs == majority
    total = (stack * scales * agrees).sum(axis=0)
    return (total / np.maximum(agrees.sum(axis=0), 1)).astype(np.float32)


def _clamped(pair: tuple[Floats, Floats], quantile: float | None) -> tuple[Floats, Floats]:
    """No value beyond a quantile of them all, as it stands, or below its negative.

    Singular vectors have no sign of their own, and PEFT's, as LAPACK leaves them, may be the others: then its quantile
    is another one too.
    """
    if quantile is None:
        return pair
    b, a = pair
    most = np.quantile(np.concatenate([b.reshape(-1), a.reshape(-1)]), quantile).astype(np.float32)
    return np.clip(b, -most, most), np.clip(a, -most, most)


def _svd(factors: Sequence[Scaled], rank: int | None) -> tuple[Floats, Floats]:
    """The best of its rank to the sum of products, whose own rank is small: found in the factors' span."""
    b = np.concatenate([b.astype(np.float64) * scale for scale, _, b in factors], axis=1)
    a = np.concatenate([a.astype(np.float64) for _, a, _ in factors])
    wanted = rank or reduce(max, (a.shape[0] for _, a, _ in factors))
    b_span, b_inner = np.linalg.qr(b)
    a_span, a_inner = np.linalg.qr(a.T)
    u, values, v = np.linalg.svd(b_inner @ a_inner.T, full_matrices=False)
    left, right = b_span @ (u * values)[:, :wanted], (a_span @ v.T[:, :wanted]).T
    return left.astype(np.float32), np.ascontiguousarray(right, np.float32)
