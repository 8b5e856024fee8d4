"""Transformer Engine's modules keep an `_extra_state`, empty without fp8; a strict load of Megatron's asks for each."""

import re
from collections.abc import Iterable

from .bindings import Binding
from .upstream_classes import ModelKind

_STATELESS = (
    "embedding.word_embeddings",
    "output_layer",
    "mlp.router",
    "mlp.shared_experts",  # its gate_weight; the layers below it keep theirs
    ".mixer",
    "mixer.conv1d",
    "mixer.norm",
    "self_attention",  # a gated delta net's own parameters
    "self_attention.conv1d",
)
"""Ends of module names that keep none: Megatron's own modules, not Transformer Engine's."""


_SPLIT = re.compile(r"\.(weight|bias)\.\w+$")
"""Megatron saves some weights in parts with names of their own: `in_proj.weight.z`."""


def _module(tensor: str) -> str:
    return _SPLIT.split(tensor)[0] if _SPLIT.search(tensor) else tensor.rpartition(".")[0]


def extra_states(kind: ModelKind, bound: Iterable[Binding]) -> tuple[str, ...]:
    """The keys of the objects, as Megatron names them: module, then which slice of which stack it is."""
    # HybridModel does not take the empty state of its output layer out, as GPTModel does.
    states: dict[str, None] = {"output_layer._extra_state/shard_0_1": None} if kind == "hybrid" else {}
    for binding in bound:
        module = _module(binding.target.name)
        if not module.endswith(_STATELESS):
            index = ".".join(map(str, binding.target.index or (0,)))
            stack = ".".join(map(str, binding.stack or (1,)))
            states[f"{module}._extra_state/shard_{index}_{stack}"] = None
    return tuple(states)
