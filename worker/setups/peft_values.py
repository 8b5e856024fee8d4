"""Adapters by Megatron-Bridge's names, which verl and NeMo-RL have too."""

from ..integration.peft import CANONICAL_PARTS, Peft
from ..jobs.setup_spec import PeftSettings
from .trainer_run import TrainerRun


def peft_values(run: TrainerRun) -> dict[str, object]:
    """All that decides which layers have adapters, and how they add; the targets that are meant spelled out.

    Left out, Bridge would take another type's targets, and one adapter for all experts of a rank. It takes exclusions
    without targets alone: here they are taken off the targets.
    """
    assert run.peft is not None
    settings = run.peft
    values: dict[str, object] = {
        "target_modules": targets(settings),
        "dim": settings.dim,
        "alpha": int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        "dropout": settings.dropout,
        "dropout_position": settings.dropout_position,
    }
    has_experts = run.model.mcore.get("num_moe_experts") is not None and settings.type != "dora"
    return {**values, "share_expert_adapters": False} if has_experts else values


def targets(settings: PeftSettings) -> tuple[str, ...]:
    """Without those that are excluded by name."""
    every = Peft(**settings.model_dump(exclude={"init_adapter"})).targets
    return tuple(
        target
        for target in every
        if not {target, CANONICAL_PARTS.get(target, (target,))[0]}.intersection(settings.exclude_modules)
    )


def excluded_by_pattern(settings: PeftSettings) -> tuple[str, ...]:
    """Exclusions that targets cannot say."""
    return tuple(name for name in settings.exclude_modules if not name.isidentifier())
