"""What a `setup` job is asked to do: a directory that a trainer starts from."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from .spec_fields import LEAST_PART_BYTES, DType, Flag, LayerKeys, Location, Real, Spec, Whole

ProfileName = Literal["megatron-lm", "megatron-bridge", "verl", "slime", "nemo-rl"]
"""The trainer."""

Recompute = Literal["none", "selective", "full"]
"""Activations that are computed again in the backward pass: none, attention's core, whole layers."""

_Size = Annotated[Whole, Field(ge=1, le=10**5)]


class Parallelism(Spec):
    """How a run is spread over GPUs."""

    tp_size: _Size = 1
    pp_size: _Size = 1
    vpp_size: _Size | None = None
    """Model chunks of each pipeline stage; None: one."""
    cp_size: _Size = 1
    ep_size: _Size = 1
    etp_size: _Size | None = None
    """None: `tp_size`, as Megatron takes it."""
    sequence_parallel: Flag | None = None
    """None: where `tp_size` is above 1."""
    first_stage_layers: _Size | None = None
    last_stage_layers: _Size | None = None
    """Uneven stages: layers of the first and of the last one; the others share the rest evenly."""
    pipeline_layout: str | None = Field(default=None, min_length=1, max_length=2000)
    """Which layers each stage holds, as Megatron's `pipeline_model_parallel_layout` has it: `Ettt|(tt|)*2,m|L`."""
    world_size: _Size | None = None
    """GPUs; None: the fewest that the sizes above allow."""


class PeftSettings(Spec):
    """Adapters beside a frozen base. Names and defaults are Megatron-Bridge's."""

    type: Literal["lora", "canonical_lora", "dora"] = "lora"
    target_modules: tuple[str, ...] = ()
    """Last parts of layer names, or patterns with `*` of full names; empty means the type's usual ones."""
    exclude_modules: tuple[str, ...] = ()
    dim: _Size = 32
    """The rank."""
    alpha: Real = Field(default=32, gt=0, allow_inf_nan=False)
    dropout: Real = Field(default=0.0, ge=0, lt=1)
    dropout_position: Literal["pre", "post"] = "pre"
    seed: Whole = Field(default=1234, ge=0)
    """Factors are drawn from this and their names."""
    init_adapter: Flag = False
    """Write a freshly initialised adapter checkpoint."""


class DdpSettings(Spec):
    """How the model is wrapped for data parallelism."""

    use_distributed_optimizer: Flag = True
    use_megatron_fsdp: Flag = False
    overrides: dict[str, Any] = Field(default_factory=dict[str, Any], max_length=100)
    """Fields of Megatron's `DistributedDataParallelConfig`."""

    @field_validator("overrides")
    @classmethod
    def _in_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        """JSON, in which all of this is kept, would make null of infinities and of what is no number."""
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError("finite numbers, texts, true, false, null, and lists or objects of them") from error
        return value


class SetupSpec(Spec):
    """HF folder, Megatron checkpoint or bare config -> a directory that a trainer starts from."""

    kind: Literal["setup"] = "setup"
    source: Location
    target: Location
    profile: ProfileName = "megatron-lm"
    parallelism: Parallelism = Parallelism()
    base: Literal["auto", "import", "link", "reference"] = "auto"
    """The weights: imported from HF; hard links to a Megatron checkpoint on the same file system; or where they are.

    `auto`: imported, or linked where that can be, else referenced.
    """
    init: Literal["source", "random"] = "source"
    """`random`: weights drawn from `seed` as Megatron initialises them; of the source only its config is read."""
    seed: Whole = Field(default=1234, ge=0, lt=2**63)
    hf_config: Location | None = None
    """A folder with config.json and tokenizer, for a Megatron checkpoint that has no `hf/` beside it."""
    dtype: DType | None = None
    layer_keys: LayerKeys = "stacked"
    """Of weights that are written; a Megatron checkpoint's are as they are."""
    peft: PeftSettings | None = None
    ddp: DdpSettings = DdpSettings()
    sequence_length: Whole | None = Field(default=None, ge=1, le=10**8)
    """Tokens of a sample; None: the model's, at most 4,096."""
    micro_batch_size: _Size = 1
    recompute: Recompute = "none"
    gpu_bytes: Whole = Field(default=80 * 2**30, ge=2**30)
    """Of one GPU; a run that is estimated to need more is refused, with a parallelism that fits."""
    part_bytes: Whole | None = Field(default=None, ge=LEAST_PART_BYTES)
    verify: tuple[Literal["load", "tensors", "logits"], ...] = ()
    """`load`: as many processes as the parallelism has ranks load the checkpoint before it is published.

    `tensors` and `logits` are an import's, of the base; one that is linked or referred to, `tensors` reads against its
    manifest.
    """
    on_exists: Literal["error", "replace", "reuse"] = "error"
    """`reuse`: as `replace`, and the base that is there serves again where it is of the same source."""
