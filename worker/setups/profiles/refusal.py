"""What a trainer has no setting for."""

from ...checkpoints.iterations import RELEASE, tracker_text
from ...jobs.errors import BadInputError
from ..peft_values import excluded_by_pattern
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


def refuse_exclusions(run: TrainerRun, trainer: str) -> None:
    """Of trainers whose adapters are Megatron-Bridge's: it has either targets or exclusions."""
    patterns = () if run.peft is None else excluded_by_pattern(run.peft)
    if patterns:
        next_step = "Name what has adapters by peft.target_modules, where patterns may stand too."
        raise no_setting(trainer, "spec field peft.exclude_modules", ", ".join(patterns), next_step)


def step_to_name(run: TrainerRun, trainer: str) -> int | None:
    """The iteration, where a trainer that asks the tracker file has to be told another; None where it finds it.

    BadInputError where it cannot be told: Megatron takes `--ckpt-step` for above 0, and not beside a `release`.
    """
    if run.tracked == tracker_text(run.iteration):
        return None
    if run.tracked == RELEASE or not run.iteration:
        next_step = "Use base `link`, on the same file system, or have the tracker file name it."
        thing = f"iteration {tracker_text(run.iteration)} of a base whose tracker file names another"
        raise no_setting(trainer, thing, run.tracked, next_step)
    return run.iteration
