"""Megatron's values of a run: the model's, with its parallelism and what is computed again."""

from ..mapping.record import Record
from .trainer_run import TrainerRun


def run_values(run: TrainerRun) -> Record:
    """All values in one record, for `megatron_values`."""
    values: dict[str, object] = {
        **run.model.mcore.values,
        **parallel_values(run),
        **stage_values(run),
        **_pipeline(run),
        **recompute_values(run),
    }
    return Record(values, run.model.mcore.origin)


def parallel_values(run: TrainerRun) -> dict[str, object]:
    """Sizes of all kinds of parallelism, by Megatron's names, which most trainers have too."""
    sizes = run.parallelism
    return {
        "tensor_model_parallel_size": sizes.tp_size,
        "pipeline_model_parallel_size": sizes.pp_size,
        "virtual_pipeline_model_parallel_size": sizes.vpp_size,
        "context_parallel_size": sizes.cp_size,
        "expert_model_parallel_size": sizes.ep_size,
        "expert_tensor_parallel_size": run.etp_size,
        "sequence_parallel": run.sequence_parallel,
    }


def stage_values(run: TrainerRun) -> dict[str, object]:
    """Uneven pipeline stages; None where they are even."""
    return {
        "pipeline_model_parallel_layout": run.parallelism.pipeline_layout,
        "num_layers_in_first_pipeline_stage": run.parallelism.first_stage_layers,
        "num_layers_in_last_pipeline_stage": run.parallelism.last_stage_layers,
    }


def recompute_values(run: TrainerRun) -> dict[str, object]:
    """What is computed again in the backward pass; None where nothing is."""
    full = run.recompute == "full"
    return {
        "recompute_granularity": None if run.recompute == "none" else run.recompute,
        "recompute_method": "uniform" if full else None,
        "recompute_num_layers": 1 if full else None,
    }


def _pipeline(run: TrainerRun) -> dict[str, object]:
    """Stages hand on what they compute in."""
    return {"pipeline_dtype": run.model.mcore.text("params_dtype")} if run.parallelism.pp_size > 1 else {}
