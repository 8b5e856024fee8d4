"""A Megatron checkpoint opened for reading: its model, and the HF tensors that it comes to."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.cast_source import CastSource
from ..checkpoints.iterations import asked_tracker, iteration_folder
from ..checkpoints.source import Source
from ..engine.convert import refuse_nonzero
from ..jobs.spec import DType
from ..mapping.bindings import held_in_fp32
from ..mapping.blocks import Plan
from ..mapping.layer_sets import layer_keys_among
from ..mapping.plan import plan_export
from .described import Described, describe
from .hf_source import STORED
from .saved_weights import args_files, args_of, open_saved, weights_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A Megatron checkpoint and the HF tensors that it comes to."""

    described: Described
    weights: Source
    plan: Plan
    described_by: tuple[Path, ...]
    """Files that say which tensors are meant, and what they mean."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All that decides what is written."""
        blocks = (*self.plan.must_be_zero, *(block for task in self.plan.tasks for block in task.blocks))
        read = {block.source.name for block in blocks}
        return (*self.described_by, *self.weights.files_of(read))


def open_checkpoint(source: Path, hf_config: Path | None, dtype: DType | None = None, *, allow_pickle: bool) -> Opened:
    """Read configs and the index. BadInputError where anything is not understood, or has no place in HF's format."""
    folder = iteration_folder(source)
    saved = open_saved(folder, allow_pickle=allow_pickle)
    described = describe(hf_config, source, folder, args_of(saved))
    weights = weights_of(saved, described.model)
    described = replace(described, model=replace(described.model, layer_keys=layer_keys_among(weights.tensors)))
    if dtype is not None:
        weights = CastSource.of(weights, STORED[dtype], held_in_fp32(described.model))
    plan = plan_export(described.model, weights.tensors)
    refuse_nonzero(plan.must_be_zero, weights)
    described_by = (*described.described_by, *asked_tracker(source), *args_files(saved))
    return Opened(described=described, weights=weights, plan=plan, described_by=described_by)
