"""Adapters that no rank could make: what `integration.adapting` and Megatron-Bridge would refuse once training starts.

Told by targets alone; where patterns or exclusions decide, the layers themselves are asked when they are adapted.
"""

from collections.abc import Iterator

from ..integration.peft import CANONICAL_PARTS, Peft
from ..jobs.setup_spec import PeftSettings
from .problem import Problem
from .trainer_run import TrainerRun

_QKV = "linear_qkv"
_OF_EXPERTS = ("linear_fc1", "linear_fc2")
_WITHOUT_EXPERTS = "Set peft.target_modules to layers outside experts, such as linear_qkv, or choose type lora."


def adapter_problems(run: TrainerRun) -> Iterator[Problem]:
    """None without adapters."""
    if run.peft is None or run.peft.exclude_modules:
        return
    layers = {CANONICAL_PARTS.get(target, (target,))[0] for target in _targets(run.peft) if target.isidentifier()}
    yield from _rank(run, run.peft, layers)
    if run.peft.type == "dora":
        yield from _magnitudes(run, layers)
    if run.peft.type == "canonical_lora":
        yield from _parts(run, layers)


def _targets(settings: PeftSettings) -> tuple[str, ...]:
    return Peft(**settings.model_dump(exclude={"init_adapter"})).targets


def _rank(run: TrainerRun, settings: PeftSettings, layers: set[str]) -> Iterator[Problem]:
    """Beside a column-parallel layer ranks share A's rows."""
    tp = run.parallelism.tp_size
    if _QKV in layers and not run.model.mcore.get("multi_latent_attention") and settings.dim % tp:
        yield Problem("peft.dim", str(settings.dim), f"a multiple of tp_size, {tp}, whose ranks share it")


def _magnitudes(run: TrainerRun, layers: set[str]) -> Iterator[Problem]:
    values = run.model.mcore
    if values.get("num_moe_experts") and values.get("moe_grouped_gemm") and layers.intersection(_OF_EXPERTS):
        expected = "lora, where experts are grouped in one layer, whose rows no magnitude can measure"
        yield Problem("peft.type", "dora", expected, _WITHOUT_EXPERTS)


def _parts(run: TrainerRun, layers: set[str]) -> Iterator[Problem]:
    values, tp = run.model.mcore, run.parallelism.tp_size
    latent = values.get("multi_latent_attention")
    groups = values.integer("num_query_groups", values.positive("num_attention_heads"))
    if _QKV in layers and not latent and groups % tp:
        expected = f"lora, where tp_size {tp} cuts the {groups} query groups themselves"
        yield Problem("peft.type", "canonical_lora", expected, "Choose type lora, or a smaller tp_size.")
    if _QKV in layers and values.get("attention_output_gate"):
        expected = "lora, where q and its gate are one projection"
        yield Problem("peft.type", "canonical_lora", expected, "Choose type lora.")
    if "linear_fc1" in layers and not values.get("gated_linear_unit"):
        yield Problem("peft.type", "canonical_lora", "lora, where MLPs have no gate", "Choose type lora.")
