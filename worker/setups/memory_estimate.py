"""What a rank's memory must hold while it trains, stage by stage: exact for parameters, an estimate for activations.

Weights, gradients and optimizer: `replication`. Activations: `layer_activations` and `activations`, with the sources of
their terms. Logits: as `megatron.training.theoretical_memory_usage` has them, and their gradient. Buffers of
communication and what the allocator cannot use are not counted: leave some gigabytes free.
"""

from dataclasses import dataclass

from ..jobs.setup_spec import Parallelism
from ..mapping.vocabulary import padded_size
from .activations import Activations, activations
from .census import Census, Place
from .counts import Counts, counts
from .layout import chunks_of_layout, stage_of_prediction
from .replication import Held, Replication
from .shares import OF_EXPERTS, one_rank
from .stages import chunks_of_stages, layers_per_stage
from .trainer_run import TrainerRun

_LOGITS_BYTES = 2 + 4 + 2
"""Of a logit: itself, its probability in fp32, and its gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Bytes on each rank of one pipeline stage."""

    stage: int
    layers: int
    parameters: int
    """A number, not bytes."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """All stages, and the one that holds most."""

    stages: tuple[StageMemory, ...]
    fullest: int

    @property
    def most(self) -> StageMemory:
        return self.stages[self.fullest]


def estimate(run: TrainerRun, counted: Counts | None = None) -> MemoryEstimate:
    """`counted`: the model's counts, for whoever asks of several parallelisms. The run must be possible."""
    counted = counted or counts(run)
    sizes = run.parallelism
    estimating = _Estimating(run, counted, activations(run, counted), Replication(run))
    stages = tuple(estimating.stage(stage, of_stage) for stage, of_stage in enumerate(_dealt(run, sizes)))
    return MemoryEstimate(stages=stages, fullest=max(stages, key=lambda one: one.total).stage)


def _dealt(run: TrainerRun, sizes: Parallelism) -> tuple[tuple[range, ...], ...]:
    if sizes.pipeline_layout is not None:
        return chunks_of_layout(sizes.pipeline_layout, sizes.pp_size)
    dealt = layers_per_stage(run.model.mcore.positive("num_layers"), sizes)
    assert dealt is not None  # whoever asks has refused what cannot be
    return chunks_of_stages(dealt, sizes.vpp_size or 1)


@dataclass(frozen=True, slots=True)
class _Estimating:
    run: TrainerRun
    counted: Counts
    activations: Activations
    replication: Replication

    def stage(self, number: int, chunks: tuple[range, ...]) -> StageMemory:
        pp = self.run.parallelism.pp_size
        places = [layer for chunk in chunks for layer in chunk] + self._ends(number)
        adapters = self.counted.adapters
        model = self._held(self.counted.model, places)
        beside = (0, 0) if adapters is None else self._held(adapters, places)
        trained = model if adapters is None else beside
        total = model[0] + beside[0], model[1] + beside[1]
        weights = self.replication.weights(total, self._unit(self.counted.model, places))
        gradients = self.replication.gradients(trained, self._unit(adapters or self.counted.model, places))
        optimizer = self.replication.optimizer(trained)
        kept = self.activations.of_stage(number, chunks, pp, predicts=number == self._predicting())
        logits = self._logits() if number == pp - 1 else 0
        return StageMemory(
            stage=number,
            layers=sum(map(len, chunks)),
            parameters=sum(total),
            weights=weights,
            gradients=gradients,
            optimizer=optimizer,
            activations=kept,
            logits=logits,
            total=weights + gradients + optimizer + kept + logits,
        )

    def _ends(self, stage: int) -> list[Place]:
        """The embedding is there again as output layer, and for multi-token prediction."""
        values, last = self.run.model.mcore, self.run.parallelism.pp_size - 1
        ends: list[Place] = ["embedding"] if stage == 0 else []
        predicts = stage == self._predicting()
        if predicts:
            ends.append("mtp")
        if stage == last:
            ends.append("end")
        tied = stage == last and values.get("share_embeddings_and_output_weights")
        copies = tied or (predicts and values.get("mtp_num_layers"))
        return [*ends, "embedding"] if stage and copies else ends

    def _predicting(self) -> int:
        """The stage of multi-token prediction."""
        sizes = self.run.parallelism
        return stage_of_prediction(sizes.pipeline_layout or "", sizes.pp_size)

    def _held(self, counted: Census, places: list[Place]) -> Held:
        dense = expert = 0
        for share, count in counted.at(places).items():
            own = one_rank(self.run, share, count)
            dense, expert = (dense, expert + own) if share in OF_EXPERTS else (dense + own, expert)
        return dense, expert

    def _unit(self, counted: Census, places: list[Place]) -> int:
        """Parameters of a rank's largest layer or end, which FSDP gathers as one; 0 where nothing is gathered."""
        if not self.replication.is_fsdp:
            return 0
        return max((sum(self._held(counted, [place])) for place in places), default=0)

    def _logits(self) -> int:
        run, values = self.run, self.run.model.mcore
        rows = padded_size(values, run.parallelism.tp_size) // run.parallelism.tp_size
        tokens = run.sequence_length * run.micro_batch_size // run.parallelism.cp_size
        return tokens * rows * _LOGITS_BYTES * (1 + values.integer("mtp_num_layers", 0))
