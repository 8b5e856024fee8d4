"""The value of one field of upstream's config classes <-> its JSON form: dtypes, enums and activations by name."""

from collections.abc import Callable
from enum import Enum, EnumType
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, cast, get_args, get_origin

from ..jobs.errors import BadInputError

if TYPE_CHECKING:
    import torch

ACTIVATION = "activation_func"
_LAYOUT = "pipeline_model_parallel_layout"


def to_json(field: str, value: object) -> object:
    """`value` in plain JSON types. BadInputError where it has no JSON form."""
    import torch

    if field == _LAYOUT and value is not None:
        return str(value)  # upstream parses the text it was given
    match value:
        case Enum():
            return value.name
        case torch.dtype():
            return str(value).removeprefix("torch.")
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [to_json(field, item) for item in cast("list[object]", value)]
        case dict():
            return {key: to_json(field, item) for key, item in cast("dict[str, object]", value).items()}
        case _:
            raise _wrong(field, f"an object of type {type(value).__name__}", "a number, text, dtype, enum or list")


def from_json(field: str, value: object, declared: object) -> object:
    """The value that `to_json` wrote, told by the field's `declared` type. BadInputError on an unknown name."""
    import torch

    if field == ACTIVATION:
        return _activation(value)
    kinds = _alternatives(declared)
    if isinstance(value, list):
        items = cast("list[object]", value)
        return tuple(items) if any(get_origin(kind) is tuple for kind in kinds) else items
    if not isinstance(value, str):
        return value
    if torch.dtype in kinds:
        return _dtype(field, value)
    # Lists of enums stay names: upstream's constructor looks their members up itself.
    enums = [kind for kind in kinds if isinstance(kind, EnumType)]
    return _member(field, value, enums[0]) if enums and str not in kinds else value


def activation_name(function: object) -> str:
    """The name under which `activation_func` is written. BadInputError for a function that has none."""
    for name, known in _activations().items():
        if known is function:
            return name
    raise _wrong(ACTIVATION, repr(function), " or ".join(_activations()))


def _activations() -> dict[str, Callable[..., Any]]:
    import torch
    from megatron.core.activations import fast_gelu, squared_relu
    from megatron.core.fusions.fused_bias_geglu import quick_gelu
    from torch.nn import functional

    return {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_pytorch_tanh": fast_gelu,
        "quick_gelu": quick_gelu,
        "relu": functional.relu,
        "relu2": squared_relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }


def _activation(name: object) -> Callable[..., Any]:
    known = _activations()
    if isinstance(name, str) and name in known:
        return known[name]
    raise _wrong(ACTIVATION, repr(name), " or ".join(known))


def _dtype(field: str, name: str) -> "torch.dtype":
    import torch

    dtype = getattr(torch, name, None)
    if isinstance(dtype, torch.dtype):
        return dtype
    raise _wrong(field, repr(name), "a torch dtype such as 'bfloat16'")


def _member(field: str, name: str, enum: EnumType) -> object:
    if name in enum.__members__:
        return enum.__members__[name]
    raise _wrong(field, repr(name), " or ".join(enum.__members__))


def _alternatives(declared: object) -> tuple[object, ...]:
    return get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)


def _wrong(field: str, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "bad_config",
        f"Megatron config: field {field!r}",
        found=found,
        expected=expected,
        next_step="Mend the config; only these can be written to model_config.json and read back.",
    )
