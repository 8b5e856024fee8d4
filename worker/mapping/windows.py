"""Sliding windows, layer by layer: HF's window and `layer_types` <-> Megatron's `window_size` and its skip list."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from .record import Record

SLIDING, FULL = "sliding_attention", "full_attention"


def windows_to_mcore(window: int | None, sliding: Sequence[bool]) -> dict[str, object]:
    """`window` counts the token itself, as HF does. `sliding`: for each layer, whether it has the window."""
    if window is None or not any(sliding):
        return {"window_size": None, "window_attn_skip_freq": None}
    skips = None if all(sliding) else [int(is_sliding) for is_sliding in sliding]
    return {"window_size": [window - 1, 0], "window_attn_skip_freq": skips}


def windows_to_hf(values: Record) -> tuple[int | None, tuple[bool, ...]]:
    """The window, or None, and for each layer whether it has it."""
    layers = values.positive("num_layers")
    match values.get("window_size"):
        case None:
            return None, (False,) * layers
        case [int(left), 0] | (int(left), 0):
            return left + 1, _sliding(values, layers)
        case _:
            raise values.wrong("window_size", "null or [left, 0]")


def _sliding(values: Record, layers: int) -> tuple[bool, ...]:
    pattern = values.get("window_attn_skip_freq")
    if isinstance(pattern, list | tuple):
        return tuple(bool(item) for item in cast("Sequence[int]", pattern))
    if pattern is None:
        return (True,) * layers
    frequency = values.positive("window_attn_skip_freq")
    return tuple((layer + 1) % frequency != 0 for layer in range(layers))


def layer_types(config: Record, default: Sequence[bool]) -> tuple[bool, ...]:
    """HF's `layer_types`, where given, as whether each layer slides."""
    given = config.get("layer_types")
    if given is None:
        return tuple(default)
    known = {SLIDING: True, FULL: False}
    names = cast("list[object]", given) if isinstance(given, list) else []
    if len(names) != config.positive("num_hidden_layers") or any(name not in known for name in names):
        raise config.wrong("layer_types", f"{SLIDING!r} or {FULL!r} for each layer")
    return tuple(known[str(name)] for name in names)


def layer_type_names(sliding: Sequence[bool]) -> list[str]:
    """HF's `layer_types` of it."""
    return [SLIDING if is_sliding else FULL for is_sliding in sliding]


def _switched_window(config: Record, default: int) -> int | None:
    """`sliding_window`, where `use_sliding_window` turns it on; null is no window all the same."""
    is_null = "sliding_window" in config.values and config.get("sliding_window") is None
    if is_null or not config.boolean("use_sliding_window", False):
        return None
    return config.positive("sliding_window", default)


@dataclass(frozen=True, slots=True)
class UpperWindows:
    """Qwen: with `use_sliding_window`, the layers from `max_window_layers` on have the window."""

    window: int = 4096
    first: int = 28
    hf: tuple[str, ...] = field(
        default=("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"), init=False
    )
    mcore: tuple[str, ...] = field(default=("window_size", "window_attn_skip_freq"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        first, layers = config.integer("max_window_layers", self.first), config.positive("num_hidden_layers")
        sliding = layer_types(config, [layer >= first for layer in range(layers)])
        return windows_to_mcore(_switched_window(config, self.window), sliding)

    def to_hf(self, values: Record) -> dict[str, object]:
        window, sliding = windows_to_hf(values)
        switch: dict[str, object] = {"use_sliding_window": window is not None, "sliding_window": window}
        return switch | {"layer_types": layer_type_names(sliding)}


@dataclass(frozen=True, slots=True)
class SwitchedWindow:
    """All layers have the window, or none: `use_sliding_window` says which."""

    window: int = 4096
    hf: tuple[str, ...] = field(default=("use_sliding_window", "sliding_window"), init=False)
    mcore: tuple[str, ...] = field(default=("window_size", "window_attn_skip_freq"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        return windows_to_mcore(_switched_window(config, self.window), (True,))

    def to_hf(self, values: Record) -> dict[str, object]:
        window, sliding = windows_to_hf(values)
        if window is not None and not all(sliding):
            raise values.unsupported("window_attn_skip_freq", "null", "This family's HF class knows no such pattern.")
        return {"use_sliding_window": window is not None, "sliding_window": window}
