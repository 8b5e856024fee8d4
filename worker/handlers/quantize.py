"""Block fp8 on export: which HF tensors are quantized, and the config that says so."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..checkpoints.extents import Computed, Item, Operand
from ..checkpoints.operations import BlockScales, ToBlockFp8
from ..jobs.errors import BadInputError
from ..mapping.bindings import Model, bindings
from ..mapping.record import Record

BLOCK = 128
_LINEAR = re.compile(r"\.(linear_(qkv|proj|fc1|fc2|q_proj|q_(up|down)_proj|kv_(up|down)_proj))\.weight$")
"""Megatron's names of the linear layers whose products fp8 kernels compute; routers, embeddings and heads are none."""


def linear_weights(model: Model) -> frozenset[str]:
    """HF's names of the matrices that are quantized. BadInputError where HF keeps its experts in one tensor."""
    found = [binding for binding in bindings(model) if _LINEAR.search(binding.target.name)]
    stacked = [part.source.name for binding in found for part in binding.parts if part.stack]
    if stacked:
        raise BadInputError(
            "bad_request",
            f"quantize: fp8 of family {model.family.name}",
            found=f"all experts in one tensor, {stacked[0]!r}",
            expected="a matrix for each expert: block fp8 has no other form",
            next_step="Leave `quantize` out.",
        )
    return frozenset(part.source.name for binding in found for part in binding.parts if len(part.shape) == 2)


def quantized_items(items: Iterable[Item], names: frozenset[str]) -> Iterator[Item]:
    """Each of these matrices as its codes and, beside it, its scales; the others as they are."""
    for item in items:
        if item.name in names:
            yield from _quantized(item)
        else:
            yield item


def _quantized(item: Item) -> Iterator[Item]:
    rows, columns = item.shape
    operand = (Operand(item.extents, item.nbytes // rows),)
    high, wide = -(-rows // BLOCK), -(-columns // BLOCK)
    codes = Computed(ToBlockFp8(columns, BLOCK, BLOCK, item.dtype), operand, 0, rows, columns)
    yield replace(item, dtype="F8_E4M3", extents=(codes,))
    # Of a row of scales, the operand's rows are those of a whole band.
    bands = (Operand(item.extents, item.nbytes // rows * BLOCK),)
    scales = Computed(BlockScales(columns, BLOCK, BLOCK, item.dtype), bands, 0, high, wide * 4)
    yield replace(item, name=f"{item.name}_scale_inv", dtype="F32", shape=(high, wide), extents=(scales,))


def fp8_config(config: Record, left_plain: Iterable[str]) -> Record:
    """With the `quantization_config` that transformers and the serving engines read."""
    modules = sorted(name.removesuffix(".weight") for name in left_plain)
    section = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "modules_to_not_convert": modules,
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    }
    return Record({**config.values, "quantization_config": section}, config.origin)
