"""What a trainer has no setting for."""

from ...jobs.errors import BadInputError
from ..trainer_run import TrainerRun


def no_setting(trainer: str, thing: str, found: object, next_step: str) -> BadInputError:
    """A value that would be lost without a word."""
    return BadInputError(
        "unsupported_config_value",
        f"{thing} for {trainer}",
        found=str(found),
        expected=f"what {trainer} has a setting for",
        next_step=next_step,
    )


def refuse_peft(run: TrainerRun, trainer: str) -> None:
    """Of trainers whose own loop knows no adapters."""
    if run.peft is not None:
        raise no_setting(
            trainer,
            "spec field peft",
            run.peft.type,
            "Use profile megatron-bridge, or leave peft out and add adapters by `integration.create_peft_hook`.",
        )


def refuse_variant(run: TrainerRun, trainer: str, names: frozenset[str]) -> None:
    """Of trainers that build upstream's own layers only."""
    for name in sorted(names):
        value = run.model.mcore.get(name)
        if value is not None:
            raise no_setting(
                trainer,
                f"Megatron value {name}",
                repr(value),
                "Build the model in a loop of your own: `mcore_ferry.integration.load_model_config`.",
            )
