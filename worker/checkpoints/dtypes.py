"""The closed vocabulary of tensor dtypes: safetensors' spelling, torch's, the bytes of one element."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One dtype under all its names. `storage` is torch's legacy storage class, which `torch.save` still writes."""

    safetensors: str
    torch: str
    storage: str
    item_bytes: int


DTYPES: tuple[DType, ...] = (
    DType("BF16", "bfloat16", "BFloat16Storage", 2),
    DType("F16", "float16", "HalfStorage", 2),
    DType("F32", "float32", "FloatStorage", 4),
    DType("F64", "float64", "DoubleStorage", 8),
    DType("U8", "uint8", "ByteStorage", 1),
    DType("I8", "int8", "CharStorage", 1),
    DType("I16", "int16", "ShortStorage", 2),
    DType("I32", "int32", "IntStorage", 4),
    DType("I64", "int64", "LongStorage", 8),
    DType("BOOL", "bool", "BoolStorage", 1),
    DType("F8_E4M3", "float8_e4m3fn", "UntypedStorage", 1),
    DType("F8_E5M2", "float8_e5m2", "UntypedStorage", 1),
)

BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in DTYPES}
BY_TORCH = {dtype.torch: dtype for dtype in DTYPES}
