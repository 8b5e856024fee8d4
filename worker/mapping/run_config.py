"""Megatron-Bridge's `run_config.yaml`: the values of its `model:` section, flat or around a transformer config.

Source: Megatron-Bridge's `ConfigContainer.to_yaml`, which writes objects as `{_target_: name, _call_: ...}`.
"""

from collections.abc import Mapping
from typing import cast

from ..jobs.errors import BadInputError
from .checkpoint_values import completed
from .record import Record

RUN_CONFIG = "run_config.yaml"
_MODEL, _TRANSFORMER, _TARGET = "model", "transformer", "_target_"

_ACTIVATIONS = {
    "torch.nn.functional.silu": "silu",
    "torch._C._nn.gelu": "gelu",
    "torch.nn.functional.gelu": "gelu",
    "torch.nn.functional.relu": "relu",
    "megatron.core.activations.fast_gelu": "gelu_pytorch_tanh",
    "megatron.core.activations.squared_relu": "relu2",
    "megatron.core.fusions.fused_bias_geglu.quick_gelu": "quick_gelu",
}
_PLAIN_SPECS = (
    "megatron.bridge.models.gpt_provider.default_layer_spec",
    "megatron.bridge.models.gpt_provider.transformer_engine_layer_spec",
    "megatron.bridge.models.gpt_provider.local_layer_spec",
    "megatron.core.models.gpt.gpt_layer_specs.get_gpt_decoder_block_spec",
)
"""What upstream's own builder would take; any other spec is another model."""

# Bridge's older Llama 3.1 provider scales rope itself, by these fields; upstream has them fixed.
_LLAMA3_ROPE = {"low_freq_factor": 1, "high_freq_factor": 4, "old_context_len": 8192}


def values_of_run_config(document: Mapping[str, object], origin: str) -> Record | None:
    """Megatron's values, as a written config has them; None where there is no `model:` section."""
    section = document.get(_MODEL)
    if not isinstance(section, Mapping):
        return None
    model = cast("Mapping[str, object]", section)
    inner = model.get(_TRANSFORMER)
    flat = {**model, **cast("Mapping[str, object]", inner)} if isinstance(inner, Mapping) else model
    values = {name: _simple(value) for name, value in flat.items() if name not in (_TRANSFORMER, _TARGET)}
    return completed({**values, **_rope(values, origin)}, origin)


def refuse_other_layers(values: Record) -> None:
    """BadInputError where the run had layers of its own, which no family's values can tell."""
    spec = values.get("transformer_layer_spec")
    if spec is not None and str(spec).strip("<>") not in _PLAIN_SPECS:
        raise BadInputError(
            "unknown_family",
            f"{values.origin}: field 'transformer_layer_spec'",
            found=str(spec).strip("<>"),
            expected="the layers of Megatron-Core's GPT",
            next_step="Give the HF config: `ferry export ... --hf-config DIR`.",
        )


def _simple(value: object) -> object:
    """Dtypes and activations by name; any other object as `<its class>`, which nothing takes for a value."""
    target = cast("Mapping[str, object]", value).get(_TARGET) if isinstance(value, Mapping) else None
    if not isinstance(target, str):
        return cast("object", value)
    if target.startswith("torch.") and target.count(".") == 1:
        return target.removeprefix("torch.")
    return _ACTIVATIONS.get(target, f"<{target}>")


def _rope(values: Mapping[str, object], origin: str) -> dict[str, object]:
    if values.get("rope_scaling") or values.get("scale_factor") is None:
        return {}
    for name, fixed in _LLAMA3_ROPE.items():
        if values.get(name) != fixed:
            why = "Megatron-Core 0.19 fixes this value for Llama-3 scaling."
            raise Record(values, origin).unsupported(name, str(fixed), why)
    return {"rope_scaling": True, "rope_scaling_factor": values["scale_factor"]}
