"""Dtypes by the names that trainers' configs use."""

import torch

_BY_NAME = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
    "float": torch.float32,
}


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype that is meant. ValueError on one that no Megatron model has, with those that there are."""
    found = _BY_NAME.get(str(dtype).lower().removeprefix("torch."))
    if found is None:
        raise ValueError(
            f"dtype {dtype!r}: expected one of {', '.join(_BY_NAME)}. Name one of these, or its torch.dtype."
        )
    return found
