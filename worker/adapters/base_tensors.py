"""The tensors of a base that adapters may belong to, by the names that they are stored under."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..checkpoints.extents import StoredTensor

_OLDER_NAMES = ((".mlp.", ".block_sparse_moe."), ("model.", "backbone."))
"""How transformers 5 calls modules, and how checkpoints do: Mixtral, MiniMax; Nemotron-H."""


@dataclass(frozen=True, kw_only=True)
class BaseTensors:
    """What there is to be adapted."""

    tensors: Mapping[str, StoredTensor]
    tied: tuple[str, str] | None
    """(output layer, embedding), where one tensor, under the embedding's name, is both."""
    turned_experts: bool
    """A stack of experts is [experts, in, out]."""
    layers: int
    """Those that HF loads; what lies beyond (multi-token prediction) no adapter of HF's was ever given factors for."""

    @cached_property
    def _modules(self) -> frozenset[str]:
        """All that have tensors, or modules that have."""
        found: set[str] = set()
        for name in self.tensors:
            while (name := name.rpartition(".")[0]) and name not in found:
                found.add(name)
        return frozenset(found)

    def is_loaded(self, name: str) -> bool:
        """Whether HF's model has the tensor."""
        layer = re.search(r"\.layers\.(\d+)\.", name)
        return layer is None or int(layer[1]) < self.layers

    def loaded(self) -> Iterator[str]:
        """Names of all that HF's model has, an output layer that is tied among them."""
        if self.tied is not None and self.tied[0] not in self.tensors:
            yield self.tied[0]
        yield from filter(self.is_loaded, self.tensors)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor, also of an output layer that is tied."""
        if self.tied is not None and name == self.tied[0] and name not in self.tensors:
            name = self.tied[1]
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.shape

    def stored(self, module: str) -> str:
        """The name under which the checkpoint has what HF's model calls `module`."""
        names = (module, *(module.replace(now, older, 1) for now, older in _OLDER_NAMES))
        return next((name for name in names if name in self._modules), module)

    def as_loaded(self, module: str) -> str:
        """How HF's model calls what is stored as `module`."""
        for now, older in _OLDER_NAMES:
            module = module.replace(older, now, 1)
        return module
