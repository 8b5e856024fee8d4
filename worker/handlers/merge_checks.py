"""`verify: tensors` of a merge: what was written against the base, and against the adapters' products made anew."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..adapters.merged_source import MergedSource
from ..adapters.peft_folder import WEIGHTS
from ..checkpoints.operations import LowRankUpdate
from ..engine.computed import shared_operand
from ..engine.reading import SourceFiles
from ..jobs.spec import MergeSpec
from ..mapping.blocks import Address, Task
from .context import JobContext
from .hf_source import is_hf
from .megatron_source import open_checkpoint
from .readers import hf_reader, megatron_reader

if TYPE_CHECKING:
    import torch

    from ..verification.readers import TensorReader
    from ..verification.recomputed import Update

Side = Literal["low", "high"]


def differing_from_merge(
    tasks: tuple[Task, ...],
    merged: MergedSource,
    spec: MergeSpec,
    written: "TensorReader",
    context: JobContext,
    heard: Callable[[int], None],
) -> list[str]:
    """Names of tensors that are not what base and adapters come to.

    Untouched ones are compared bit for bit. Of a touched one every value must be one that base + products, worked out
    in fp64 by torch, can round to: that proves the arithmetic, whatever made it, to the last bit but where fp32's own
    error decides. Which factors belong to which tensor, and how several are combined, is taken from the plan:
    `logits` asks HF's model about that.
    """
    from ..verification.readers import reading
    from ..verification.tensors import differing, put_together

    expected = _Merged(merged, _base_reader(spec, context))
    wrong: list[str] = []
    for task in tasks:
        if not any(expected.changes(block.source) for block in task.blocks):
            wrong += differing([task], expected, written, heard)
            continue
        with reading(f"tensor '{task.target}' as it was written"):
            found = written.read(task.target.name, task.target.index)
        low, high = (put_together(task, expected.side(one)) for one in ("low", "high"))
        if found.dtype != low.dtype or found.shape != low.shape or not bool(((low <= found) & (found <= high)).all()):
            wrong.append(str(task.target))
        heard(found.numel() * found.element_size())
    return wrong


def _base_reader(spec: MergeSpec, context: JobContext) -> "TensorReader":
    source = context.locations.resolve_source(spec.source)
    if is_hf(source):
        return hf_reader(source)
    hf_config = None if spec.hf_config is None else context.locations.resolve_source(spec.hf_config)
    opened = open_checkpoint(source, hf_config, allow_pickle=context.locations.allow_pickle)
    return megatron_reader(source, opened.plan)


@dataclass(slots=True)
class _Merged:
    """A TensorReader under the base's names, and of touched tensors the bounds of what may be written."""

    merged: MergedSource
    base: "TensorReader"
    _last: "dict[Address, tuple[torch.Tensor, torch.Tensor]]" = field(
        default_factory=lambda: dict[Address, "tuple[torch.Tensor, torch.Tensor]"]()
    )

    def changes(self, source: Address) -> bool:
        """Whether arithmetic has a part in it."""
        return self.merged.followers.get(source.name, source.name) in self.merged.touched

    def read(self, name: str, index: tuple[int, ...]) -> "torch.Tensor":
        name = self.merged.followers.get(name, name)
        if name in self.merged.replaced:
            from ..verification.readers import SafetensorsReader

            folder, own = self.merged.replaced[name]
            return SafetensorsReader(folder.path, single=WEIGHTS).stored(own, index)
        return self.base.read(self.merged.origin(name), index)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.merged.tensors.items()}

    def side(self, which: Side) -> "_Side":
        return _Side(self, which)

    def bounds(self, name: str, index: tuple[int, ...]) -> "tuple[torch.Tensor, torch.Tensor]":
        """Of a tensor, or slice, in the dtype that it is written in."""
        address = Address(self.merged.followers.get(name, name), index)
        if address not in self._last:
            while len(self._last) > 3:  # those that one fused tensor is made of
                self._last.pop(next(iter(self._last)))
            self._last[address] = self._bounds(address)
        return self._last[address]

    def _bounds(self, address: Address) -> "tuple[torch.Tensor, torch.Tensor]":
        import torch

        from ..verification.recomputed import bounds
        from ..verification.tensors import DTYPES

        stored = self.merged.tensors[address.name]
        if address in self.merged.updates:
            return bounds(self.read(address.name, address.index), self._update(address))
        shape = stored.shape[len(address.index) :]
        if any(one.name == address.name and len(one.index) > len(address.index) for one in self.merged.updates):
            slices = [self._bounds(Address(address.name, (*address.index, place))) for place in range(shape[0])]
            return torch.stack([low for low, _ in slices]), torch.stack([high for _, high in slices])
        as_it_is = self.read(address.name, address.index).to(DTYPES[stored.dtype])
        return as_it_is, as_it_is

    def _update(self, address: Address) -> "Update":
        import torch

        from ..engine.low_rank import pairs_of, prepared
        from ..verification.recomputed import Product, Update

        computed, files = self.merged.update(address), SourceFiles()
        assert isinstance(computed.operation, LowRankUpdate)
        try:
            operands = enumerate(computed.operands[1:])
            shared = tuple(shared_operand(operand, number, files.anew) for number, operand in operands)
            operation, factors = prepared(computed.operation, shared)
        finally:
            files.close()
        products = [
            Product(
                scale=pair.scale,
                left=torch.from_numpy(pair.left.copy()),  # pyright: ignore[reportUnknownMemberType]  # torch's stub
                right=torch.from_numpy(pair.right.copy()),  # pyright: ignore[reportUnknownMemberType]
                magnitude=None if pair.magnitude is None else torch.tensor(pair.magnitude),
                by_column=pair.by_column,
                dtype=pair.dtype,
            )
            for pair in pairs_of(operation, factors)
        ]
        return Update(products=products, source=operation.source, written=operation.dtype, stepwise=operation.stepwise)


@dataclass(frozen=True, slots=True)
class _Side:
    """A TensorReader of one bound of every tensor."""

    of: _Merged
    which: Side

    def read(self, name: str, index: tuple[int, ...]) -> "torch.Tensor":
        low, high = self.of.bounds(name, index)
        return low if self.which == "low" else high

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.of.shapes()
