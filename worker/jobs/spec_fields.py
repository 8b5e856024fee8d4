"""What specs of all kinds are made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Strict, StringConstraints

Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
"""No text for a number, and neither for the other: `true` is no size, 1 is no answer."""

Location = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""`root-name:relative/path`, or an absolute path under a configured root."""

LEAST_PART_BYTES = 2**20
"""Of `part_bytes`: about so much is written, retried and resumed as one part; None: chosen by the size of the whole."""

LEAST_SHARD_BYTES = 16 * 2**10
"""Of `max_shard_bytes`: a file's own index may take as much."""

DType = Literal["bf16", "fp16", "fp32"]
"""What tensors are cast to; each is rounded once. None: as they are stored, quantized ones as the config says."""


LayerKeys = Literal["stacked", "per-layer"]
"""Of a decoder whose layers are alike: one tensor for all, or one a layer, which Megatron plans to load much faster."""


class Spec(BaseModel):
    """Frozen, and closed to fields that it does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
