"""An HF folder of quantized weights, seen as the tensors that they stand for; their scales are seen no more."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..jobs.errors import BadInputError
from .dtypes import BY_SAFETENSORS
from .extents import Computed, Extent, Operand, Permuted, Run, StoredTensor
from .operations import BlockFp8, Mxfp4, Operation, PackedInt4
from .safetensors_folder import SafetensorsFolder

_SCALE_DTYPES = ("F32", "BF16", "F16")
_MXFP4_BYTES, _MXFP4_VALUES = 16, 32
_INT4_IN_WORD = 8


@dataclass(frozen=True, slots=True)
class Fp8Blocks:
    """DeepSeek-V3: `X.weight` in e4m3 and `X.weight_scale_inv`, one scale a block."""

    block_rows: int
    block_columns: int


@dataclass(frozen=True, slots=True)
class Mxfp4Experts:
    """gpt-oss: `X_blocks` [experts, columns, groups, 16] and `X_scales` [experts, columns, groups] for X transposed."""


@dataclass(frozen=True, slots=True)
class Int4Packed:
    """compressed-tensors: `X.weight_packed`, `X.weight_scale` and `X.weight_shape`."""

    group_columns: int


Scheme = Fp8Blocks | Mxfp4Experts | Int4Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A tensor that arithmetic makes of stored ones."""

    tensor: StoredTensor
    stored: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedFolder:
    """A Source. `dtype` is what dequantized tensors become; all others are as they are stored."""

    weights: SafetensorsFolder
    scheme: Scheme
    dtype: str
    made: Mapping[str, _Made]
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def of(cls, weights: SafetensorsFolder, scheme: Scheme, dtype: str) -> "QuantizedFolder":
        """BadInputError where a quantized weight has no scale, or parts of it do not fit each other."""
        all_made = dict(_made(weights, scheme, dtype))
        hidden = {name for made in all_made.values() for name in made.stored}
        tensors = {name: tensor for name, tensor in weights.tensors.items() if name not in hidden}
        tensors |= {name: made.tensor for name, made in all_made.items()}
        return cls(weights=weights, scheme=scheme, dtype=dtype, made=all_made, tensors=tensors)

    def files_of(self, names: Iterable[str]) -> tuple[Path, ...]:
        stored = (self.made[name].stored if name in self.made else (name,) for name in names)
        return self.weights.files_of(name for group in stored for name in group)

    def whole(self, name: str) -> tuple[Extent, ...]:
        """All bytes of a tensor."""
        made = self.made.get(name)
        return self.weights.whole(name) if made is None else self.rows(name, (), 0, made.tensor.shape[0])

    def rows(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        made = self.made.get(name)
        if made is None:
            return self.weights.rows(name, index, start, rows)
        match self.scheme:
            case Fp8Blocks(height, width):
                columns = made.tensor.shape[1]
                scale_dtype = self.weights.tensors[made.stored[1]].dtype
                operation = BlockFp8(columns, height, width, scale_dtype, self.dtype)
                return (self._computed(made, operation, start, rows, height),)
            case Int4Packed(group):
                columns = made.tensor.shape[1]
                scale_dtype = self.weights.tensors[made.stored[1]].dtype
                return (self._computed(made, PackedInt4(columns, group, scale_dtype, self.dtype), start, rows, 1),)
            case Mxfp4Experts():
                experts = index or range(start, start + rows)
                return tuple(self._expert(made, expert) for expert in experts)

    def _computed(self, made: _Made, operation: Operation, start: int, rows: int, rows_a_scale: int) -> Computed:
        weight, scale = made.stored[:2]
        return Computed(
            operation,
            (self._operand(weight, 1), self._operand(scale, rows_a_scale)),
            start,
            rows,
            prod(made.tensor.shape[1:]) * made.tensor.item_bytes,
        )

    def _operand(self, name: str, rows_each: int) -> Operand:
        stored = self.weights.tensors[name]
        return Operand(self.weights.whole(name), prod(stored.shape[1:]) * stored.item_bytes, rows_each)

    def _expert(self, made: _Made, expert: int) -> Permuted:
        """One expert's matrix: dequantized column by column, then turned."""
        _, rows, columns = made.tensor.shape
        operands = tuple(
            Operand(self.weights.rows(name, (expert,), 0, columns), prod(self.weights.tensors[name].shape[2:]))
            for name in made.stored
        )
        item_bytes = made.tensor.item_bytes
        turned = Computed(Mxfp4(self.dtype), operands, 0, columns, rows * item_bytes)
        return Permuted((turned,), (columns, rows), (1, 0), item_bytes)


def _made(weights: SafetensorsFolder, scheme: Scheme, dtype: str) -> Iterator[tuple[str, _Made]]:
    for name, tensor in weights.tensors.items():
        match scheme:
            case Fp8Blocks() if tensor.dtype == "F8_E4M3":
                yield name, _fp8(weights, name, scheme, dtype)
            case Mxfp4Experts() if name.endswith("_blocks"):
                yield name.removesuffix("_blocks"), _mxfp4(weights, name, dtype)
            case Int4Packed() if name.endswith(".weight_packed"):
                yield name.removesuffix("_packed"), _int4(weights, name, scheme, dtype)
            case _:
                pass


def _fp8(weights: SafetensorsFolder, name: str, scheme: Fp8Blocks, dtype: str) -> _Made:
    shape = _matrix(weights, name)
    blocks = (-(-shape[0] // scheme.block_rows), -(-shape[1] // scheme.block_columns))
    scale = _scale(weights, name, f"{name}_scale_inv", blocks)
    return _Made(tensor=_tensor(dtype, shape), stored=(name, scale))


def _mxfp4(weights: SafetensorsFolder, name: str, dtype: str) -> _Made:
    blocks = weights.tensors[name]
    if blocks.dtype != "U8" or len(blocks.shape) != 4 or blocks.shape[3] != _MXFP4_BYTES:
        raise _bad(name, f"{blocks.dtype} {list(blocks.shape)}", "U8 [experts, columns, groups, 16]")
    experts, columns, groups, _ = blocks.shape
    scales = f"{name.removesuffix('_blocks')}_scales"
    _expect(weights, name, scales, ("U8",), (experts, columns, groups))
    return _Made(tensor=_tensor(dtype, (experts, groups * _MXFP4_VALUES, columns)), stored=(name, scales))


def _int4(weights: SafetensorsFolder, name: str, scheme: Int4Packed, dtype: str) -> _Made:
    packed = weights.tensors[name]
    rows, words = _matrix(weights, name)
    stem = name.removesuffix("_packed")
    said = f"{stem}_shape"
    if packed.dtype != "I32" or said not in weights.tensors:
        raise _bad(name, f"{packed.dtype}, {_presence(weights, said)}", f"I32, and {said!r} beside it")
    shape = _integers(weights, said)
    if len(shape) != 2 or shape[0] != rows or -(-shape[1] // _INT4_IN_WORD) != words:
        raise _bad(said, f"{list(shape)} for {rows} rows of {words} words", "the shape that was packed")
    scale = _scale(weights, name, f"{stem}_scale", (rows, -(-shape[1] // scheme.group_columns)))
    return _Made(tensor=_tensor(dtype, (shape[0], shape[1])), stored=(name, scale, said))


def _matrix(weights: SafetensorsFolder, name: str) -> tuple[int, int]:
    shape = weights.tensors[name].shape
    if len(shape) != 2:
        raise _bad(name, f"shape {list(shape)}", "a matrix")
    return shape[0], shape[1]


def _scale(weights: SafetensorsFolder, name: str, scale: str, shape: tuple[int, ...]) -> str:
    _expect(weights, name, scale, _SCALE_DTYPES, shape)
    return scale


def _expect(weights: SafetensorsFolder, name: str, scale: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    found = weights.tensors.get(scale)
    if found is None:
        raise BadInputError(
            "missing_tensor",
            f"quantized HF tensor {name!r}",
            found=f"no scale {scale!r}",
            expected="each quantized weight with its scale",
            next_step="Download the checkpoint again, completely; without its scales a weight has no value.",
        )
    if found.dtype not in dtypes or found.shape != shape:
        expected = f"{' or '.join(dtypes)} {list(shape)} for {name!r}"
        raise _bad(scale, f"{found.dtype} {list(found.shape)}", expected)


def _integers(weights: SafetensorsFolder, name: str) -> tuple[int, ...]:
    stored = weights.tensors[name]
    (run,) = weights.whole(name)
    assert isinstance(run, Run)  # as safetensors keeps them
    if stored.dtype not in ("I32", "I64") or stored.nbytes > 64:
        raise _bad(name, f"{stored.dtype} {list(stored.shape)}", "two integers")
    with run.path.open("rb") as file:
        file.seek(run.offset)
        data = file.read(run.length)
    size = stored.item_bytes
    return tuple(int.from_bytes(data[at : at + size], "little", signed=True) for at in range(0, len(data), size))


def _presence(weights: SafetensorsFolder, name: str) -> str:
    return f"with {name!r}" if name in weights.tensors else f"no {name!r}"


def _tensor(dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor(dtype=dtype, shape=shape, item_bytes=BY_SAFETENSORS[dtype].item_bytes)


def _bad(name: str, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "bad_tensor",
        f"HF tensor {name!r}",
        found=found,
        expected=expected,
        next_step="Check that config.json's quantization_config belongs to these files.",
    )
