"""Megatron's values of a run: the model's, with its parallelism and what is computed again."""

from ..mapping.record import Record
from .trainer_run import TrainerRun


def run_values(run: TrainerRun) -> Record:
    """All values in one record, for `megatron_values`."""
    sizes = run.parallelism
    values: dict[str, object] = {
        **run.model.mcore.values,
        "tensor_model_parallel_size": sizes.tp_size,
        "pipeline_model_parallel_size": sizes.pp_size,
        "virtual_pipeline_model_parallel_size": sizes.vpp_size,
        "context_parallel_size": sizes.cp_size,
        "expert_model_parallel_size": sizes.ep_size,
        "expert_tensor_parallel_size": run.etp_size,
        "sequence_parallel": run.sequence_parallel,
        "num_layers_in_first_pipeline_stage": sizes.first_stage_layers,
        "num_layers_in_last_pipeline_stage": sizes.last_stage_layers,
        **_pipeline(run),
        **_recomputed(run),
    }
    return Record(values, run.model.mcore.origin)


def _pipeline(run: TrainerRun) -> dict[str, object]:
    """Stages hand on what they compute in."""
    return {"pipeline_dtype": run.model.mcore.text("params_dtype")} if run.parallelism.pp_size > 1 else {}


def _recomputed(run: TrainerRun) -> dict[str, object]:
    match run.recompute:
        case "none":
            return {}
        case "selective":
            return {"recompute_granularity": "selective"}
        case "full":
            return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
