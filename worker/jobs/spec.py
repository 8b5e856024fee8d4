"""What a job is asked to do: one frozen class a kind, a union on `kind`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Location = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
"""`root-name:relative/path`, or an absolute path under a configured root."""

DEFAULT_MAX_SHARD_BYTES = 5_000_000_000


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ConfigSpec(_Spec):
    """Answer Megatron's `GPTModelConfig` for an HF config: configuration only."""

    kind: Literal["config"] = "config"
    source: Location


class ImportSpec(_Spec):
    """HF folder -> Megatron-Core `torch_dist` checkpoint."""

    kind: Literal["import"] = "import"
    source: Location
    target: Location
    iteration: int | None = Field(default=None, ge=0, le=10**12)
    """None writes `release/`; a number writes `iter_0000000`-style and that number in the tracker file."""


class ExportSpec(_Spec):
    """Megatron-Core `torch_dist` checkpoint -> HF folder."""

    kind: Literal["export"] = "export"
    source: Location
    target: Location
    hf_config: Location | None = None
    """A folder with config.json (and tokenizer) for a checkpoint that has no `hf/` beside it."""
    max_shard_bytes: int = Field(default=DEFAULT_MAX_SHARD_BYTES, gt=0)


JobSpec = Annotated[ConfigSpec | ImportSpec | ExportSpec, Field(discriminator="kind")]
JobKind = Literal["config", "import", "export"]

Label = Annotated[str, StringConstraints(max_length=200)]


class JobRequest(BaseModel):
    """The body of `POST /v1/jobs`: the spec and what is said about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: JobSpec
    labels: dict[Label, Label] = Field(default_factory=dict[str, str], max_length=32)


def target_of(spec: JobSpec) -> str | None:
    """The location that the job will create, if it creates one."""
    match spec:
        case ConfigSpec():
            return None
        case ImportSpec() | ExportSpec():
            return spec.target
