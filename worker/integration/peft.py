"""What adapters a trainer asks for, as a checked value."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

if TYPE_CHECKING:
    import torch

PeftType = Literal["lora", "canonical_lora", "dora"]
InitMethod = Literal["xavier", "kaiming", "normal", "zero"]
DropoutPosition = Literal["pre", "post"]

CANONICAL_PARTS: dict[str, tuple[str, str]] = {
    "linear_q": ("linear_qkv", "adapter_q"),
    "linear_k": ("linear_qkv", "adapter_k"),
    "linear_v": ("linear_qkv", "adapter_v"),
    "linear_fc1_gate": ("linear_fc1", "adapter_gate"),
    "linear_fc1_up": ("linear_fc1", "adapter_up"),
}
"""Targets of canonical LoRA that are parts of a fused layer: the layer, and the part's adapter."""

_FUSED = ("linear_qkv", "linear_fc1")
_LATENT = ("linear_q_proj", "linear_q_down_proj", "linear_q_up_proj", "linear_kv_down_proj", "linear_kv_up_proj")
_SINGLE = ("linear_proj", "linear_fc2", *_LATENT, "router")
_TARGETS: dict[PeftType, tuple[str, ...]] = {
    "lora": (*_FUSED, *_SINGLE),
    "canonical_lora": (*CANONICAL_PARTS, *_SINGLE),
    "dora": (*_FUSED, *_SINGLE[:-1]),
}
"""Layers that each type supports, by the last part of their names."""
_DEFAULT_TARGETS: dict[PeftType, tuple[str, ...]] = {
    "lora": (*_FUSED, "linear_proj", "linear_fc2"),
    "canonical_lora": (*CANONICAL_PARTS, "linear_proj", "linear_fc2"),
    "dora": (*_FUSED, "linear_proj", "linear_fc2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peft:
    """Adapters beside a frozen base. Names and defaults are Megatron-Bridge's."""

    type: PeftType = "lora"
    target_modules: tuple[str, ...] = ()
    """Last parts of layer names, or patterns with `*` of full names; empty means the type's usual ones."""
    exclude_modules: tuple[str, ...] = ()
    """Last parts of layer names, or patterns of full names, that stay as they are."""
    dim: int = 32
    """The rank."""
    alpha: float = 32
    """The adapter's product is scaled by alpha / dim."""
    dropout: float = 0.0
    dropout_position: DropoutPosition = "pre"
    """Before the two factors, or after them."""
    lora_A_init_method: InitMethod = "xavier"  # noqa: N815  # upstream's name
    lora_B_init_method: InitMethod = "zero"  # noqa: N815
    lora_dtype: "torch.dtype | None" = None
    """Of the adapter's weights; None means the base's."""
    normalize_moe_lora: bool = False
    """Experts have rank `dim // moe_router_topk`."""
    share_expert_adapters: bool = False
    """Only False: each expert of a grouped layer has an adapter of its own. Bridge's default shares one."""
    seed: int = 1234
    """Factors are drawn whole from this and their name, so that no parallelism changes them."""

    def __post_init__(self) -> None:
        _one_of("type", self.type, get_args(PeftType))
        for name in ("lora_A_init_method", "lora_B_init_method"):
            _one_of(name, getattr(self, name), get_args(InitMethod))
        _one_of("dropout_position", self.dropout_position, get_args(DropoutPosition))
        _one_of("share_expert_adapters", self.share_expert_adapters, (False,))
        for target in self.targets:
            _one_of(f"{self.type} target", target.rpartition(".")[2], _TARGETS[self.type])
        if self.dim <= 0 or not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"adapter: found dim {self.dim}, dropout {self.dropout}, expected dim > 0, 0 <= dropout < 1"
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """What `target_modules` comes to."""
        return self.target_modules or _DEFAULT_TARGETS[self.type]

    def parts_of(self, name: str) -> tuple[str, ...] | None:
        """The adapters that a layer of this full name gets; "" for one of the whole layer, None for no adapter."""
        if any(_names(pattern, name) for pattern in self.exclude_modules):
            return None
        found: list[str] = []
        for target in self.targets:
            layer, part = CANONICAL_PARTS.get(target.rpartition(".")[2], ("", ""))
            pattern = target[: len(target) - len(target.rpartition(".")[2])] + layer if part else target
            if self.type == "canonical_lora" and _names(pattern, name):
                found.append(part)
            elif self.type != "canonical_lora" and _names(target, name):
                found.append("")
        return tuple(dict.fromkeys(found)) or None

    def rank_of(self, is_expert: bool, topk: int) -> int:
        """The rank of one layer's adapter. ValueError where experts cannot share it evenly."""
        if not (self.normalize_moe_lora and is_expert):
            return self.dim
        if self.dim % topk:
            raise ValueError(f"normalize_moe_lora: found dim {self.dim}, expected a multiple of moe_router_topk {topk}")
        return self.dim // topk


def create_peft(config: Mapping[str, Any], dtype: "torch.dtype | str | None" = None) -> Peft | None:
    """The adapters that a trainer's config names; None where `dim` (or `rank`, the same) is missing or not above 0.

    The dtype of adapter weights is `lora_dtype`, else the config's `dtype`, else the argument, else the base's.
    ValueError on an unsupported type, dtype, target or key, with the supported ones: upstream drops unknown keys
    (Megatron-Bridge, `create_peft`).
    """
    values = dict(config)
    if "rank" in values:
        values["dim"] = values.pop("rank")
    named = values.pop("dtype", None)
    chosen = next((value for value in (values.get("lora_dtype"), named, dtype) if value is not None), None)
    from .dtypes import dtype_of  # torch, which those who only ask for targets need not import

    known = [field.name for field in fields(Peft)]
    for name in values:
        _one_of("key", name, known)
    _one_of("type", values.get("type", "lora"), get_args(PeftType))
    lora_dtype = None if chosen is None else dtype_of(cast(Any, chosen))
    if (values.get("dim") or 0) <= 0:
        return None
    for name in ("target_modules", "exclude_modules"):
        values[name] = tuple(values.get(name) or ())
    values["lora_dtype"] = lora_dtype
    return Peft(**values)


def _names(pattern: str, name: str) -> bool:
    """The last part of a name where the pattern is one word; else the whole name."""
    return pattern == name.rpartition(".")[2] if pattern.isidentifier() else fnmatchcase(name, pattern)


def supported_targets(kind: PeftType) -> tuple[str, ...]:
    """The last parts of layer names that adapters of a type can go to."""
    return _TARGETS[kind]


def _one_of(thing: str, found: object, supported: Iterable[object]) -> None:
    names = tuple(supported)
    if found not in names:
        raise ValueError(
            f"adapter {thing}: found {found!r}, expected one of {', '.join(map(str, names))}. Mend the config."
        )
