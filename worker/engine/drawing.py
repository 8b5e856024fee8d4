"""Values drawn at random, the same ones whichever rows are asked for, on whichever host."""

from typing import assert_never

import numpy as np

from ..checkpoints.operations import Drawn, drawn_rows
from .arithmetic import Floats


def drawn(operation: Drawn, first: int, rows: int) -> Floats:
    """`rows` rows from row `first`, in fp32: bands of rows, each from a generator of its own."""
    band = drawn_rows(operation.columns)
    bands = [_band(operation, number, band) for number in range(first // band, -(-(first + rows) // band))]
    start = (first % band) * operation.columns
    return np.concatenate(bands)[start : start + rows * operation.columns]


def _band(operation: Drawn, number: int, rows: int) -> Floats:
    size = rows * operation.columns
    key = np.array([*operation.seed, 0, 0][:2], np.uint64)
    random = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, number], np.uint64)))
    low, high = operation.low, operation.high
    match operation.law:
        case "constant":
            return np.full(size, low, np.float32)
        case "normal":
            values = random.standard_normal(size, np.float32)
            values *= np.float32(high)
            values += np.float32(low)
            return values
        case "uniform":
            return random.uniform(low, high, size).astype(np.float32)
        case "log_of_uniform":
            return np.log(random.uniform(low, high, size)).astype(np.float32)
        case "softplus_inverse_of_log_uniform":
            values = np.exp(random.uniform(np.log(low), np.log(high), size))
            return (values + np.log(-np.expm1(-values))).astype(np.float32)
        case _:
            assert_never(operation.law)
