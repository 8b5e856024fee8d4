"""Transformer Engine's modules keep an `_extra_state`, empty without fp8; a strict load of Megatron's asks for each."""

from collections.abc import Iterable

from .bindings import Binding

_STATELESS = (
    "embedding.word_embeddings",
    "output_layer",
    "mlp.router",
    "mlp.shared_experts",  # its gate_weight; the layers below it keep theirs
)
"""Ends of module names that keep none: Megatron's own modules, not Transformer Engine's."""


def extra_states(bound: Iterable[Binding]) -> tuple[str, ...]:
    """The keys of the objects, as Megatron names them: module, then which slice of which stack it is."""
    states: dict[str, None] = {}
    for binding in bound:
        module = binding.target.name.rpartition(".")[0]
        if not module.endswith(_STATELESS):
            index = ".".join(map(str, binding.target.index or (0,)))
            stack = ".".join(map(str, binding.stack or (1,)))
            states[f"{module}._extra_state/shard_{index}_{stack}"] = None
    return tuple(states)
