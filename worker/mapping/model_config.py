"""Upstream's config objects: built from mapped values, written as JSON, read back."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, assert_never, cast, get_args, get_type_hints

from ..jobs.errors import BadInputError
from .hf_source import HF_SOURCE, recorded_source
from .rope import UNDECLARED_YARN
from .strict import strict
from .upstream_classes import ModelKind
from .upstream_values import ACTIVATION, activation_name, from_json, to_json

if TYPE_CHECKING:
    from megatron.training.models.gpt import GPTModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronValues:
    """The values of one model config before upstream's class exists: plain JSON, activation and dtype by name."""

    kind: ModelKind
    model: Mapping[str, object]
    """Fields of the outer class."""
    transformer: Mapping[str, object]
    """Fields of its `TransformerConfig`, or `MLATransformerConfig`."""
    extra: Mapping[str, object]
    """`extra_checkpoint_metadata`: family and HF source, and values that upstream reads but does not declare (yarn)."""


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
_BUILDERS = (
    "megatron.training.models.gpt.GPTModelBuilder",
    "megatron.training.models.hybrid.HybridModelBuilder",
    "mcore_ferry.integration.variants.VariantGPTModelBuilder",
)
# The package under which trainers install what is `worker` here; written configs speak to them.
_PUBLISHED, _OURS = "mcore_ferry.", f"{__name__.partition('.')[0]}."

# Upstream's constructor refuses these where the host lacks their kernels. The config says what the model is
# trained with, whichever host writes it: they are set once it exists, and `for_this_host` switches them off.
_REFUSED_WITHOUT_KERNELS = ("apply_rope_fusion", "moe_permute_fusion")


def build(values: MegatronValues) -> "GPTModelConfig":
    """Upstream's config object: configuration only, not finalized. BadInputError on a name that upstream lacks."""
    transformer = _construct(_transformer_class(values), values.transformer)
    extra = {**deepcopy(dict(values.extra)), **recorded_source(str(values.extra.get(HF_SOURCE)))}
    return _around(transformer, _outer_class(values.kind), {**values.model, _EXTRA: extra})


def decoded(values: MegatronValues) -> dict[str, object]:
    """All values in one, as upstream's classes hold them: dtypes, enums and the activation as objects."""
    outer = _decoded(_outer_class(values.kind), values.model)
    undeclared = cast("Mapping[str, object]", values.extra.get(_UNDECLARED, {}))
    return outer | _decoded(_transformer_class(values), values.transformer) | dict(undeclared)


def to_json_dict(config: "GPTModelConfig") -> dict[str, object]:
    """`config.as_dict()` in plain JSON types, with the activation, which upstream leaves out, by name.

    Other callables are a trainer's hooks and initializers: no part of the model, and made anew by the constructor.
    """
    for spec in ("transformer_layer_spec", "hybrid_stack_spec"):
        if getattr(config, spec, None) is not None:
            raise _wrong(spec, "a layer spec of the trainer's own", "none: the builder's own")
    written = cast("dict[str, object]", config.as_dict())
    transformer = dict(cast("dict[str, object]", written[_TRANSFORMER]))
    transformer[ACTIVATION] = activation_name(config.transformer.activation_func)
    for name in (_TARGET, _BUILDER):
        written[name] = published(str(written[name]))
    written = {name: to_json(name, value) for name, value in written.items() if name != _TRANSFORMER}
    return written | {_TRANSFORMER: {name: to_json(name, value) for name, value in transformer.items()}}


def from_json_dict(data: Mapping[str, object]) -> "GPTModelConfig":
    """The config that `to_json_dict` wrote. Classes are looked up in a list, never imported by the file's word."""
    _one_of(_BUILDER, data.get(_BUILDER), _BUILDERS)
    transformer = data.get(_TRANSFORMER)
    if not isinstance(transformer, Mapping):
        raise _wrong(_TRANSFORMER, repr(transformer), "an object")
    inner_class, inner = _class_and_values(cast("Mapping[str, object]", transformer))
    outer_class, outer = _class_and_values({name: value for name, value in data.items() if name != _BUILDER})
    return _around(_construct(inner_class, inner), outer_class, outer)


def _class_and_values(data: Mapping[str, object]) -> tuple[type, dict[str, object]]:
    classes = _known_classes()
    target = _one_of(_TARGET, data.get(_TARGET), classes)
    return classes[target], {name: value for name, value in data.items() if name != _TARGET}


def _around(transformer: Any, outer_class: type, values: Mapping[str, object]) -> "GPTModelConfig":
    """The outer config of `transformer`, whose values hold where both classes declare a field (rotary_base of MLA).

    Upstream's constructor would overwrite them with the outer class's defaults.
    """
    shared = {field.name for field in fields(outer_class)} & {field.name for field in fields(transformer)}
    agreed = {name: getattr(transformer, name) for name in shared}
    config = _construct(outer_class, {**values, **agreed, _TRANSFORMER: transformer})
    _restore_undeclared(config)
    return config


def _transformer_class(values: MegatronValues) -> type:
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    return MLATransformerConfig if values.transformer.get("multi_latent_attention") is True else TransformerConfig


def _outer_class(kind: ModelKind) -> type:
    match kind:
        case "gpt":
            from megatron.training.models.gpt import GPTModelConfig

            return GPTModelConfig
        case "hybrid":
            from megatron.training.models.hybrid import HybridModelConfig

            return HybridModelConfig
        case "variant":
            from ..integration.variants import VariantGPTModelConfig

            return VariantGPTModelConfig
        case _:
            assert_never(kind)


def _known_classes() -> dict[str, type]:
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    outer = (_outer_class(kind) for kind in get_args(ModelKind))
    return {
        published(f"{known.__module__}.{known.__qualname__}"): known
        for known in (*outer, TransformerConfig, MLATransformerConfig)
    }


def published(name: str) -> str:
    """A class's name as trainers import it."""
    return _PUBLISHED + name.removeprefix(_OURS) if name.startswith(_OURS) else name


def _construct(config_class: type, values: Mapping[str, object]) -> Any:
    """Upstream's dataclass with our values, closed to names that it does not declare."""
    given = _decoded(config_class, values)
    late = {name: given.pop(name) for name in _REFUSED_WITHOUT_KERNELS if name in given}
    try:
        config = strict(config_class)(**given)
    except (ValueError, TypeError, AssertionError) as error:
        raise _wrong(config_class.__name__, str(error), "values that Megatron-Core accepts") from error
    for name, value in late.items():
        setattr(config, name, value)
    return config


def _decoded(config_class: type, values: Mapping[str, object]) -> dict[str, object]:
    declared = get_type_hints(config_class)
    known = tuple(field.name for field in fields(config_class))
    for name in values:
        _one_of(f"{config_class.__name__} field", name, known)
    return {name: from_json(name, value, declared[name]) for name, value in values.items()}


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
