"""A base layer with adapters beside it: the wrappers that take its place in a model."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterator
from typing import Any, cast, override

import torch
from torch import Tensor, nn

from .expert_low_rank import ExpertLowRank
from .low_rank import LowRank, Offsets, mark, sharded

_WRAPPED, _ADAPTER = "to_wrap.", "adapter."
_SHOWN = frozenset(("backward_dw", "bias", "config", "set_layer_number", "weight", "weight0"))
"""What upstream reads off a layer from outside."""


class Adapted(nn.Module):
    """`to_wrap` is the base, `adapter` what is trained. Checkpoints keep the base's keys as they were before."""

    def __init__(self, to_wrap: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.to_wrap, self.adapter, self.enabled = to_wrap, adapter, True
        if hasattr(to_wrap, "return_layernorm_output"):
            cast(Any, to_wrap).return_layernorm_output = True
        self.register_state_dict_post_hook(_name_as_unwrapped)
        self.register_load_state_dict_pre_hook(_name_as_wrapped)

    def __getattr__(self, name: str) -> Any:
        if name in _SHOWN:
            return getattr(super().__getattr__("to_wrap"), name)
        return super().__getattr__(name)

    def merged_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """The base's parameters and, in fp32, what they are with the adapter folded in. All ranks take part."""
        raise NotImplementedError

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The base's keys, as without an adapter, and the adapter's under `adapter.`."""
        base, adapter = cast(Any, self.to_wrap), cast(Any, self.adapter)
        return {
            **base.sharded_state_dict(prefix, sharded_offsets, metadata),
            **adapter.sharded_state_dict(f"{prefix}{_ADAPTER}", sharded_offsets, metadata),
        }

    def project(self, x: Tensor, *args: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        """The base's output and bias, before any norm that follows it, and what it multiplied by its weight.

        Transformer Engine's layers with a norm of their own answer `((y, normed), None)` or `(y, bias, normed)`.
        """
        base = cast(Any, self.to_wrap)
        answer = (base.projected if hasattr(base, "projected") else base)(x, *args)
        if len(answer) == 3:
            return answer
        y, bias = answer
        return (y[0], bias, y[1]) if isinstance(y, tuple) else (y, bias, x)

    def normed(self, y: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The output after the norm that follows the base, if one does."""
        base = cast(Any, self.to_wrap)
        return base.normed(y, bias) if hasattr(base, "normed") else (y, bias)


class AdaptedLinear(Adapted):
    """W x + B A x alpha / rank."""

    adapter: LowRank | ExpertLowRank

    @override
    def forward(self, x: Tensor, *args: Any) -> tuple[Tensor, Tensor | None]:
        """As the base's; grouped experts take their token counts as well."""
        y, bias, seen = self.project(x, *args)
        if self.enabled:
            y = y + self.adapter(seen, *args).to(y.dtype)
        return self.normed(y, bias)

    @override
    def merged_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        adapter, base = self.adapter, cast(Any, self.to_wrap)
        deltas = adapter.deltas() if isinstance(adapter, ExpertLowRank) else [adapter.delta()]
        names = [f"weight{number}" for number in range(len(deltas))] if adapter.base.experts else ["weight"]
        for name, delta in zip(names, deltas, strict=True):
            weight: nn.Parameter = getattr(base, name)
            yield weight, weight.detach().float() + delta


class AdaptedRouter(Adapted):
    """Logits W x + B A x alpha / rank, then upstream's routing."""

    adapter: LowRank

    def __init__(self, to_wrap: nn.Module, adapter: LowRank) -> None:
        super().__init__(to_wrap, adapter)
        router = cast(Any, to_wrap)
        self._gating = router.gating
        router.gating = self._logits  # upstream's forward asks the router itself for them

    @override
    def forward(self, *args: Any, **options: Any) -> Any:
        """Upstream's."""
        return self.to_wrap(*args, **options)

    @override
    def merged_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        weight = cast(Any, self.to_wrap).weight
        yield weight, weight.detach().float() + self.adapter.delta()

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self._gating(x)
        return logits + self.adapter(x).to(logits.dtype) if self.enabled else logits


class Parts(nn.ModuleDict):
    """Adapters of parts of one layer, by name."""

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """All of theirs."""
        found: dict[str, Any] = {}
        for name, part in self.items():
            found |= cast(LowRank, part).sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata)
        return found


class AdaptedFused(Adapted):
    """Canonical LoRA: q, k and v, or gate and up projection, each with factors of its own; any of them may lack."""

    adapter: Parts

    def __init__(self, to_wrap: nn.Module, adapter: Parts, part_rows: dict[str, int], groups: int) -> None:
        """`part_rows`: this rank's rows of each part, in order; `groups`: how often the parts alternate on it."""
        super().__init__(to_wrap, adapter)
        self.part_rows, self.groups = part_rows, groups

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        y, bias, seen = self.project(x)
        if self.enabled:
            parts = [self._part(name, seen, (*y.shape[:-1], rows)) for name, rows in self.part_rows.items()]
            y = y + self._fused(parts, -1).to(y.dtype)
        return self.normed(y, bias)

    @override
    def merged_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        weight = cast(Any, self.to_wrap).weight
        columns = weight.shape[1]
        parts = [
            cast(LowRank, self.adapter[name]).delta() if name in self.adapter else weight.new_zeros(rows, columns)
            for name, rows in self.part_rows.items()
        ]
        yield weight, weight.detach().float() + self._fused([part.float() for part in parts], 0)

    def _part(self, name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.adapter[name](x) if name in self.adapter else x.new_zeros(shape)

    def _fused(self, parts: list[Tensor], axis: int) -> Tensor:
        """a, b, .. -> [a.. b.. | a.. b..], by groups."""
        pieces = zip(*(part.chunk(self.groups, axis) for part in parts), strict=True)
        return torch.cat([piece for group in pieces for piece in group], axis)


class Magnitude(LowRank):
    """The factors, and DoRA's `weight_magnitude` [outputs]: the length that each row of the weight has."""

    weight_magnitude: nn.Parameter

    def set_magnitude(self, lengths: Tensor) -> None:
        """Start from these, which are the base's own."""
        self.weight_magnitude = nn.Parameter(lengths)
        mark(self.weight_magnitude, self.base, self._axis)

    @property
    def _axis(self) -> int | None:
        return 0 if self.base.kind == "column" else None

    @override
    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Those of the factors, and [layers.., outputs]."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        name = f"{prefix}weight_magnitude"
        whole = sharded(self.weight_magnitude, name, self.base, self._axis, sharded_offsets)
        return {**state, name: self.as_gated(whole, sharded_offsets, metadata)}


class AdaptedDirection(Adapted):
    """DoRA: m (W + B A alpha / rank) / |W + B A alpha / rank|, row by row (Liu et al. 2024, equation 5).

    The lengths take no part in the gradient (section 4.3); biases are added as they are; dropout acts on B A alone.
    """

    adapter: Magnitude

    def __init__(self, to_wrap: nn.Module, adapter: Magnitude) -> None:
        super().__init__(to_wrap, adapter)
        adapter.set_magnitude(self._lengths(self._weight().detach().float()).to(adapter.linear_in.weight.dtype))

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        y, bias, seen = self.project(x)
        if self.enabled:
            added = self._added_bias(bias)
            factor = self.adapter.weight_magnitude / self._lengths(self._directed())
            y = (factor * (y - added + self.adapter(seen))).to(y.dtype) + added
        return self.normed(y, bias)

    @override
    def merged_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        directed = self._directed()
        factor = self.adapter.weight_magnitude.detach().float() / self._lengths(directed)
        yield self._weight(), factor.unsqueeze(-1) * directed

    def _weight(self) -> nn.Parameter:
        return cast(Any, self.to_wrap).weight

    def _directed(self) -> Tensor:
        return self._weight().detach().float() + self.adapter.delta()

    def _lengths(self, weight: Tensor) -> Tensor:
        """Of the whole rows, of which a row-parallel rank holds a part."""
        squares = weight.square().sum(1)
        if self.adapter.base.kind == "row" and self.adapter.base.ranks > 1:
            torch.distributed.all_reduce(squares, group=self.adapter.base.group)
        return squares.sqrt()

    def _added_bias(self, returned: Tensor | None) -> Tensor | float:
        """The bias that the base has added already, rather than answered."""
        bias: Tensor | None = getattr(self.to_wrap, "bias", None)
        return 0.0 if returned is not None or bias is None or bias.numel() == 0 else bias


def adapted_modules(model: nn.Module) -> Iterator[Adapted]:
    """Every layer of a model chunk that has an adapter."""
    return (module for module in model.modules() if isinstance(module, Adapted))


def _name_as_unwrapped(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: object) -> None:
    for key in [key for key in state if key.startswith(prefix + _WRAPPED)]:
        state[prefix + key.removeprefix(prefix + _WRAPPED)] = state.pop(key)


def _name_as_wrapped(module: nn.Module, state: dict[str, Any], prefix: str, *unused: object) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if not name.startswith((_WRAPPED, _ADAPTER)):
            state[prefix + _WRAPPED + name] = state.pop(key)
