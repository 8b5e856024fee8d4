"""The dtype that a config asks for: HF's `dtype` (older: `torch_dtype`) <-> Megatron's params_dtype, bf16, fp16."""

from dataclasses import dataclass, field

from .record import Record

_KNOWN = ("float32", "bfloat16", "float16")

HELD_IN_FP32 = (".router.expert_bias", ".A_log", ".mixer.D")
"""Ends of Megatron's names: tensors that its modules keep in fp32, whatever `params_dtype` is."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Missing means fp32, as in HF. The dtypes of the tensors themselves are kept as they are stored."""

    hf: tuple[str, ...] = field(default=("dtype", "torch_dtype"), init=False)
    mcore: tuple[str, ...] = field(default=("params_dtype", "bf16", "fp16"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        name = "dtype" if config.get("dtype") is not None else "torch_dtype"
        dtype = config.text(name, "float32").removeprefix("torch.")
        if dtype not in _KNOWN:
            raise config.unsupported(name, " or ".join(_KNOWN), "Save the HF model in one of these.")
        return {"params_dtype": dtype, "bf16": dtype == "bfloat16", "fp16": dtype == "float16"}

    def to_hf(self, values: Record) -> dict[str, object]:
        dtype = values.text("params_dtype", "float32").removeprefix("torch.")
        return {"dtype": dtype}
