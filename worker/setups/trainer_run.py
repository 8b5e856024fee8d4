"""All that a trainer's files are made from."""

from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.iterations import iteration_name
from ..jobs.setup_spec import DdpSettings, Parallelism, PeftSettings, Recompute
from ..jobs.spec_fields import DType
from ..mapping.bindings import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerRun:
    """A model, where its weights lie, and how it is to be trained. Paths are absolute, as the trainer sees them."""

    model: Model
    """`model.mcore` holds Megatron's values, outer and transformer fields in one record; `model.hf` is config.json."""
    dtype: DType
    parallelism: Parallelism
    world_size: int
    target: Path
    """The directory that is being set up."""
    base: Path
    """The Megatron checkpoint: a folder with a tracker file."""
    iteration: int | None
    """None: `release`."""
    tracked: str
    """What the tracker file names: that iteration, unless another one was asked for."""
    hf: Path
    """A folder with config.json and, where there is one, the tokenizer."""
    hf_weights: Path | None
    """The HF folder that the base was imported from, if it was and is still there."""
    peft: PeftSettings | None
    adapter: Path | None
    """The freshly initialised adapter checkpoint, if one was asked for."""
    ddp: DdpSettings
    sequence_length: int
    micro_batch_size: int
    recompute: Recompute
    seed: int

    @property
    def item_bytes(self) -> int:
        """Of a weight or activation."""
        return 4 if self.dtype == "fp32" else 2

    @property
    def etp_size(self) -> int:
        return self.parallelism.etp_size or self.parallelism.tp_size

    @property
    def sequence_parallel(self) -> bool:
        wanted = self.parallelism.sequence_parallel
        return self.parallelism.tp_size > 1 if wanted is None else wanted

    @property
    def dp_size(self) -> int:
        sizes = self.parallelism
        return self.world_size // (sizes.tp_size * sizes.pp_size * sizes.cp_size)

    @property
    def replicas(self) -> int:
        """Ranks that hold the same weights outside experts: of data and context parallelism."""
        return self.world_size // (self.parallelism.tp_size * self.parallelism.pp_size)

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same experts; without experts, as many as the sizes would have it."""
        return self.world_size // (self.etp_size * self.parallelism.ep_size * self.parallelism.pp_size)

    @property
    def weights(self) -> Path:
        """The iteration's folder."""
        return self.base / iteration_name(self.iteration)

    @property
    def checkpoints(self) -> str:
        """Where the run saves: beside the directory, which stays as it was set up."""
        return f"{self.target}-checkpoints"

    @property
    def gpus_per_node(self) -> int:
        """As many as there are, up to 8, such that all nodes have the same."""
        return next(count for count in range(8, 0, -1) if self.world_size % count == 0)

    @property
    def nodes(self) -> int:
        return self.world_size // self.gpus_per_node
