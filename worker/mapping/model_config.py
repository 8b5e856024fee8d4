"""Upstream's config objects: built from mapped values, written as JSON, read back."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, cast, get_type_hints

from ..jobs.errors import BadInputError
from .rope import UNDECLARED_YARN
from .upstream_values import ACTIVATION, activation_name, from_json, to_json

if TYPE_CHECKING:
    from megatron.training.models.gpt import GPTModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronValues:
    """The values of one `GPTModelConfig` before upstream's class exists: plain JSON, activation and dtype by name."""

    model: Mapping[str, object]
    """Fields of the outer class."""
    transformer: Mapping[str, object]
    """Fields of its `TransformerConfig`."""
    extra: Mapping[str, object]
    """`extra_checkpoint_metadata`: the HF source, and values that upstream reads but does not declare (yarn)."""


class ModelConfigs(Protocol):
    """Builds upstream's config class, which takes seconds to import, somewhere off the copy path."""

    def start(self, values: MegatronValues) -> None:
        """Begin building."""
        ...

    def result(self) -> dict[str, object]:
        """`as_dict()` of the built config, JSON-safe; waits for it."""
        ...

    def close(self) -> None:
        """End what still runs, wanted or not."""
        ...


_TARGET, _BUILDER = "_target_", "_builder_"
_TRANSFORMER, _EXTRA, _UNDECLARED = "transformer", "extra_checkpoint_metadata", "undeclared"
_BUILDERS = ("megatron.training.models.gpt.GPTModelBuilder",)

# Upstream's constructor refuses these where the host lacks their kernels. The config says what the model is
# trained with, whichever host writes it: they are set once it exists, and `for_this_host` switches them off.
_REFUSED_WITHOUT_KERNELS = ("apply_rope_fusion", "moe_permute_fusion")


def build(values: MegatronValues) -> "GPTModelConfig":
    """Upstream's config object: configuration only, not finalized. BadInputError on a name that upstream lacks."""
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.training.models.gpt import GPTModelConfig

    transformer = _construct(TransformerConfig, values.transformer)
    outer = {**values.model, _TRANSFORMER: transformer, _EXTRA: deepcopy(dict(values.extra))}
    config = _construct(GPTModelConfig, outer)
    _restore_undeclared(config)
    return config


def to_json_dict(config: "GPTModelConfig") -> dict[str, object]:
    """`config.as_dict()` in plain JSON types, with the activation, which upstream leaves out, by name.

    Other callables are a trainer's hooks and initializers: no part of the model, and made anew by the constructor.
    """
    if config.transformer_layer_spec is not None:
        raise _wrong("transformer_layer_spec", "a layer spec of the trainer's own", "none: upstream's default")
    written = cast("dict[str, object]", config.as_dict())
    transformer = dict(cast("dict[str, object]", written[_TRANSFORMER]))
    transformer[ACTIVATION] = activation_name(config.transformer.activation_func)
    written = {name: to_json(name, value) for name, value in written.items() if name != _TRANSFORMER}
    return written | {_TRANSFORMER: {name: to_json(name, value) for name, value in transformer.items()}}


def from_json_dict(data: Mapping[str, object]) -> "GPTModelConfig":
    """The config that `to_json_dict` wrote. Classes are looked up in a list, never imported by the file's word."""
    _one_of(_BUILDER, data.get(_BUILDER), _BUILDERS)
    transformer = data.get(_TRANSFORMER)
    if not isinstance(transformer, Mapping):
        raise _wrong(_TRANSFORMER, repr(transformer), "an object")
    outer = {name: value for name, value in data.items() if name != _BUILDER}
    config = _read({**outer, _TRANSFORMER: _read(cast("Mapping[str, object]", transformer))})
    _restore_undeclared(config)
    return config


def _read(data: Mapping[str, object]) -> Any:
    classes = _upstream_classes()
    target = _one_of(_TARGET, data.get(_TARGET), classes)
    return _construct(classes[target], {name: value for name, value in data.items() if name != _TARGET})


def _upstream_classes() -> dict[str, type]:
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
    from megatron.training.models.gpt import GPTModelConfig

    classes: tuple[type, ...] = (GPTModelConfig, TransformerConfig, MLATransformerConfig)
    return {f"{known.__module__}.{known.__qualname__}": known for known in classes}


def _construct(config_class: type, values: Mapping[str, object]) -> Any:
    """Upstream's dataclass with our values; it would take misspelled names as attributes without a word."""
    declared = get_type_hints(config_class)
    for name in values:
        _one_of(f"{config_class.__name__} field", name, (field.name for field in fields(config_class)))
    decoded = {name: from_json(name, value, declared[name]) for name, value in values.items()}
    late = {name: decoded.pop(name) for name in _REFUSED_WITHOUT_KERNELS if name in decoded}
    try:
        config = config_class(**decoded)
    except (ValueError, TypeError, AssertionError) as error:
        raise _wrong(config_class.__name__, str(error), "values that Megatron-Core accepts") from error
    for name, value in late.items():
        setattr(config, name, value)
    return config


def _restore_undeclared(config: "GPTModelConfig") -> None:
    """Set on `.transformer` what `GPTModel` reads there though no class declares it."""
    undeclared = (config.extra_checkpoint_metadata or {}).get(_UNDECLARED, {})
    for name, value in undeclared.items():
        setattr(config.transformer, _one_of(_UNDECLARED, name, UNDECLARED_YARN), value)


def _one_of(thing: str, name: object, known: Iterable[str]) -> str:
    names = tuple(known)
    if isinstance(name, str) and name in names:
        return name
    raise _wrong(thing, repr(name), " or ".join(names) if len(names) < 10 else "a name that megatron-core declares")


def _wrong(thing: str, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "bad_config",
        f"Megatron config: {thing}",
        found=found,
        expected=expected,
        next_step="Mend the config, or read it with the megatron-core that wrote it.",
    )
