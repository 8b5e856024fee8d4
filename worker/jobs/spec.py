"""What a job is asked to do: one frozen class a kind, a union on `kind`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from .setup_spec import SetupSpec
from .spec_fields import LEAST_PART_BYTES, DType, Flag, LayerKeys, Location, Real, Spec, Whole

LEAST_MEMORY_BYTES = 64 * 2**20
"""Less would not even hold a process."""


OnExists = Literal["error", "replace"]
"""What a job does where its target exists: refuse, or put its output there by one atomic exchange."""


Quantization = Literal["fp8"]
"""Linear layers in e4m3 with a scale for each 128 x 128 block, as DeepSeek-V3's; all other tensors as they are."""


Check = Literal["tensors", "logits"]
"""Of an output, before it is published: every tensor read again by the formats' own libraries and compared with what
its source comes to; both models run on the same tokens in fp32. What that means for each kind: README."""


class ConfigSpec(Spec):
    """Answer Megatron's `GPTModelConfig` for an HF config: configuration only."""

    kind: Literal["config"] = "config"
    source: Location


class ImportSpec(Spec):
    """HF folder -> Megatron-Core `torch_dist` checkpoint."""

    kind: Literal["import"] = "import"
    source: Location
    target: Location
    iteration: Whole | None = Field(default=None, ge=0, le=10**12)
    """None writes `release/`; a number writes `iter_0000000`-style and that number in the tracker file."""
    dtype: DType | None = None
    vocab_padding: Whole | None = Field(default=None, ge=1, le=4096)
    """The tensor-parallel size for which the vocabulary is written padded, with zeros; None: as it is."""
    layer_keys: LayerKeys = "stacked"
    part_bytes: Whole | None = Field(default=None, ge=LEAST_PART_BYTES)
    verify: tuple[Check, ...] = ()
    on_exists: OnExists = "error"


class ExportSpec(Spec):
    """Megatron-Core `torch_dist` checkpoint -> HF folder."""

    kind: Literal["export"] = "export"
    source: Location
    target: Location
    hf_config: Location | None = None
    """A folder with config.json (and tokenizer) for a checkpoint that has no `hf/` beside it."""
    max_shard_bytes: Whole | None = Field(default=None, gt=0)
    """None: by the size of the whole, from 1 to 5 GB, so that several processes write and read at once."""
    dtype: DType | None = None
    quantize: Quantization | None = None
    part_bytes: Whole | None = Field(default=None, ge=LEAST_PART_BYTES)
    verify: tuple[Check, ...] = ()
    on_exists: OnExists = "error"


class AdapterUse(Spec):
    """An adapter of a merge, and how much of it."""

    path: Location
    weight: Real = Field(default=1.0, allow_inf_nan=False)


Combine = Literal["sequential", "linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
"""What several adapters come to: each added to the base, or combined into one first, as PEFT's `combination_type`."""

_BY_DENSITY = ("ties", "dare_linear", "dare_ties", "magnitude_prune")


class MergeSpec(Spec):
    """A base, HF or Megatron, with adapters folded into its weights."""

    kind: Literal["merge"] = "merge"
    source: Location
    """The base."""
    target: Location
    adapters: tuple[AdapterUse, ...] = Field(min_length=1, max_length=100)
    combine: Combine = "sequential"
    density: Real | None = Field(default=None, gt=0, le=1, validate_default=True)
    """The share of values that is kept."""
    majority_sign_method: Literal["total", "frequency"] = "total"
    svd_rank: Whole | None = Field(default=None, ge=1)
    """None: the largest rank of the adapters."""
    svd_clamp: Real | None = Field(default=None, gt=0.5, le=1)
    """A quantile of the values of both factors that svd leaves; larger ones are cut to it. None: no value is cut."""
    seed: Whole = Field(default=0, ge=0)
    """Of what `dare_linear` and `dare_ties` drop."""
    to: Literal["hf", "megatron"] = "hf"
    layer_keys: LayerKeys = "stacked"
    rounding: Literal["exact", "peft"] = "exact"
    """Once, after all sums in fp32; or as PEFT rounds, adapter by adapter, each product to its factors' dtype first."""
    dequantize: Flag = False
    """A quantized base may be written plain."""
    hf_config: Location | None = None
    """A folder with config.json (and tokenizer) for a Megatron base that has no `hf/` beside it."""
    max_shard_bytes: Whole | None = Field(default=None, gt=0)
    dtype: DType | None = None
    part_bytes: Whole | None = Field(default=None, ge=LEAST_PART_BYTES)
    verify: tuple[Check, ...] = ()
    on_exists: OnExists = "error"

    @field_validator("density")
    @classmethod
    def _density_where_it_counts(cls, value: float | None, others: ValidationInfo) -> float | None:
        combine = others.data.get("combine")
        if combine is not None and (value is not None) != (combine in _BY_DENSITY):
            raise ValueError(f"a number with {', '.join(_BY_DENSITY)}, and none with other ways to combine")
        return value

    @field_validator("svd_rank", "svd_clamp")
    @classmethod
    def _with_svd_alone(cls, value: float | None, others: ValidationInfo) -> float | None:
        if value is not None and others.data.get("combine") != "svd":
            raise ValueError("none, since only svd has such a choice")
        return value


class VerifySpec(Spec):
    """Check a folder against its manifest, or compare the tensors of two checkpoints, of any formats."""

    kind: Literal["verify"] = "verify"
    source: Location
    against: Location | None = None
    """Another checkpoint; None: the manifest in `source`."""
    hf_config: Location | None = None
    """A folder with config.json for a Megatron checkpoint that has no `hf/` beside it."""
    logits: Flag = False
    """With `against`: run both models on the same tokens too; what they say decides, and tensors may differ."""
    logits_tolerance: Real | None = Field(default=None, gt=0, le=1)
    """Of the logits' range, by how much they may differ; None: 0.001, so much as sums in another order explain.

    Where no limit is given and the weights are stored in other forms (a cast, fp8), the one side's are rounded as the
    other's first: what remains is held against the same bar.
    """
    least_top1: Real | None = Field(default=None, ge=0, le=1)
    """The part of places at which both must choose the same token; None: all."""


class AdapterExportSpec(Spec):
    """Megatron adapter -> PEFT folder."""

    kind: Literal["adapter"] = "adapter"
    action: Literal["export"] = "export"
    source: Location
    target: Location
    base: Location | None = None
    """The model that it adapts: an HF folder or a Megatron checkpoint, of which configs alone are read.

    None: as `hf/` or `run_config.yaml` of the adapter says.
    """
    base_name: str | None = Field(default=None, min_length=1, max_length=1000)
    """What `base_model_name_or_path` says; None: as an import left it, else the base's path."""
    verify: tuple[Literal["tensors"], ...] = ()
    on_exists: OnExists = "error"


class AdapterImportSpec(Spec):
    """PEFT folder -> Megatron adapter."""

    kind: Literal["adapter"] = "adapter"
    action: Literal["import"] = "import"
    source: Location
    target: Location
    base: Location
    """The model that it adapts: an HF folder or a Megatron checkpoint, of which configs alone are read."""
    form: Literal["auto", "canonical", "fused"] = "auto"
    """Of layers that Megatron fuses: factors for each of q, k and v, or one pair whose rank is the sum of theirs.

    `auto`: one pair of the same rank where all three share A, else canonical; DoRA, which has no canonical form, fused.
    """
    iteration: Whole | None = Field(default=None, ge=0, le=10**12)
    verify: tuple[Literal["tensors"], ...] = ()
    on_exists: OnExists = "error"


class AdapterExtractSpec(Spec):
    """Two checkpoints of one model -> PEFT folder of what lies between them, as near as its rank allows."""

    kind: Literal["adapter"] = "adapter"
    action: Literal["extract"] = "extract"
    source: Location
    """The base."""
    tuned: Location
    target: Location
    rank: Whole = Field(ge=1, le=10**5)
    save_others: Flag = False
    """Modules that differ and are not linear layers are saved whole; else they are an error."""
    dtype: DType = "fp32"
    """Of the factors."""
    hf_config: Location | None = None
    """A folder with config.json for a Megatron checkpoint that has no `hf/` beside it."""
    base_name: str | None = Field(default=None, min_length=1, max_length=1000)
    """What `base_model_name_or_path` says; None: the base's path."""
    verify: tuple[Literal["tensors"], ...] = ()
    on_exists: OnExists = "error"


AdapterSpec = AdapterExportSpec | AdapterImportSpec | AdapterExtractSpec
"""Adapters alone: from one format into the other, or out of two checkpoints."""

ConversionSpec = ImportSpec | ExportSpec | MergeSpec | AdapterSpec | SetupSpec
"""Jobs that write a checkpoint."""


def _as_openapi(schema: dict[str, Any]) -> None:
    """OpenAPI maps a discriminator's value to one schema; `adapter` has three, told apart by a discriminator inside."""
    schema["discriminator"]["mapping"].pop("adapter", None)


JobSpec = Annotated[
    ConfigSpec
    | ImportSpec
    | ExportSpec
    | MergeSpec
    | SetupSpec
    | VerifySpec
    | Annotated[AdapterSpec, Field(discriminator="action")],
    Field(discriminator="kind", json_schema_extra=_as_openapi),
]
JobKind = Literal["config", "import", "export", "merge", "adapter", "setup", "verify"]

Label = Annotated[str, StringConstraints(max_length=200)]
JobId = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Priority = Literal["low", "normal", "high"]


class JobRequest(BaseModel):
    """The body of `POST /v1/jobs`: the spec, what it needs, and what is said about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: JobSpec
    labels: dict[Label, Label] = Field(default_factory=dict[str, str], max_length=32)
    priority: Priority = "normal"
    """Among the waiting jobs of one resource class."""
    gpus: Whole = Field(default=0, ge=0, le=64)
    """Devices of one host, leased all or none."""
    timeout_seconds: Real | None = Field(default=None, gt=0, le=10**7)
    """How long one attempt may take; None: the worker's own limit, if any."""
    stall_seconds: Real | None = Field(default=None, gt=0, le=10**7)
    """How long an attempt may live without any progress; None: the worker's own limit."""
    memory_bytes: Whole | None = Field(default=None, ge=LEAST_MEMORY_BYTES)
    """What its processes may hold together, the cache of files aside; None: the worker's own limit, if any."""
    depends_on: tuple[JobId, ...] = Field(default=(), max_length=100)
    """Jobs that must succeed first; where one of them fails or is cancelled, this one fails."""


def target_of(spec: JobSpec) -> str | None:
    """The location that the job will create, if it creates one."""
    match spec:
        case ConfigSpec() | VerifySpec():
            return None
        case _:
            return spec.target


def replaces(spec: JobSpec) -> bool:
    """Whether the job may put its output where something stands."""
    match spec:
        case ConfigSpec() | VerifySpec():
            return False
        case _:
            return spec.on_exists != "error"


def resource_class(request: JobRequest) -> str:
    """`cpu`, `gpu` or `gpu:N`: which slots can run the job."""
    match request.gpus:
        case 0:
            return "cpu"
        case 1:
            return "gpu"
        case many:
            return f"gpu:{many}"
