"""Every written tensor against what its source says that it must be, both read by the formats' own libraries."""
# torch and Megatron are typed in part:
# pyright: basic

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import xxhash

from ..mapping.blocks import Task
from .readers import SafetensorsReader, TensorReader, reading

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""What is cast; tensors of other dtypes are copied as they are."""


def differing(
    tasks: Iterable[Task], source: TensorReader, written: TensorReader, heard: Callable[[int], None]
) -> list[str]:
    """Names of tensors whose bits are others; `heard` learns of the bytes that were compared."""
    wrong: list[str] = []
    for task in tasks:
        with reading(f"tensor '{task.target}' as it was written"):
            found = written.read(task.target.name, task.target.index)
        expected = expected_of(task, source)
        if found.dtype != expected.dtype or found.shape != expected.shape or _digest(found) != _digest(expected):
            wrong.append(str(task.target))
        heard(expected.numel() * expected.element_size())
    return wrong


def differing_codes(
    tasks: Iterable[Task], source: TensorReader, written: SafetensorsReader, block: int, heard: Callable[[int], None]
) -> list[str]:
    """The same for matrices that were written as e4m3 codes with a scale for each block."""
    wrong: list[str] = []
    for task in tasks:
        weight, scales = quantized_of(expected_of(task, source), block)
        with reading(f"tensor '{task.target}' as it was written"):
            found = written.stored(task.target.name).view(torch.uint8)
            found_scales = written.stored(f"{task.target.name}_scale_inv")
        if not torch.equal(found_scales, scales) or not torch.equal(found, weight.view(torch.uint8)):
            wrong.append(str(task.target))
        heard(weight.numel())
    return wrong


def unlike_digests(
    tasks: Iterable[Task], digests: Mapping[str, str], cuts: Mapping[str, Sequence[int]], written: TensorReader
) -> list[str]:
    """Names of tensors that are not what was digested on its way to the disk; `cuts` are its segments' lengths."""
    wrong: list[str] = []
    for task in tasks:
        with reading(f"tensor '{task.target}' as it was written"):
            found = written.read(task.target.name, task.target.index)
        name = str(task.target)
        if sum(cuts.get(name, ())) != found.numel() * found.element_size() or (
            found.numel() and digest(found, cuts[name]) != digests[name]
        ):
            wrong.append(name)
    return wrong


def listed_otherwise(tasks: Iterable[Task], beside: Mapping[str, tuple[int, ...]], written: TensorReader) -> list[str]:
    """Names of tensors that are there and should not be, or the other way, or that claim another shape.

    `beside` are those that are written beside the tasks' own. What no task makes, no task's comparison would look at.
    """
    expected = {task.target.name: (*task.stack, *task.shape) for task in tasks} | dict(beside)
    found = written.shapes()
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def expected_of(task: Task, source: TensorReader) -> torch.Tensor:
    """What the task makes of its source, in torch: rows put together, axes turned, padded, rounded once."""
    made = put_together(task, source)
    return made.to(DTYPES[task.dtype]) if task.dtype in DTYPES else made


def put_together(task: Task, source: TensorReader) -> torch.Tensor:
    """The same before it is rounded."""
    if not task.blocks:
        return torch.zeros(task.shape)
    read = {block.source: source.read(block.source.name, block.source.index) for block in task.blocks}
    rows = torch.cat([read[block.source][block.start : block.start + block.rows] for block in task.blocks])
    if task.permutation is not None:
        rows = rows.reshape(task.permutation.shape).permute(task.permutation.axes)
    padding = rows.new_zeros((task.padding_rows, *rows.shape[1:]))
    made = torch.cat([rows, padding]) if task.padding_rows else rows
    return made.reshape(task.shape)


@dataclass(frozen=True, kw_only=True)
class RenderedReader:
    """A TensorReader of what tasks make of another checkpoint: Megatron's tensors under HF's names."""

    source: TensorReader
    tasks: tuple[Task, ...]

    @cached_property
    def _by_name(self) -> dict[str, dict[tuple[int, ...], Task]]:
        found: dict[str, dict[tuple[int, ...], Task]] = {}
        for task in self.tasks:
            found.setdefault(task.target.name, {})[task.target.index] = task
        return found

    def read(self, name: str, index: tuple[int, ...]) -> torch.Tensor:
        slices = self._by_name[name]
        lead = len(next(iter(slices)))
        if len(index) >= lead:
            return expected_of(slices[index[:lead]], self.source)[index[lead:]]
        stack = next(iter(slices.values())).stack
        whole = torch.stack([expected_of(slices[place], self.source) for place in sorted(slices)])
        return whole.unflatten(0, stack)[index] if stack else whole[0][index]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {task.target.name: (*task.stack, *task.shape) for task in self.tasks}


def quantized_of(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix as e4m3 codes and one scale a block."""
    rows, columns = weight.shape
    values = weight.float()
    padded = torch.nn.functional.pad(values.abs(), (0, -columns % block, 0, -rows % block))
    largest = padded.reshape(-(-rows // block), block, -1, block).amax(dim=(1, 3))
    scales = largest / torch.full_like(largest, 448.0)
    scales[scales == 0] = 1.0
    spread = scales.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    return (values / spread).to(torch.float8_e4m3fn), scales


def digest(tensor: torch.Tensor, cuts: Iterable[int]) -> str:
    """Of its bytes, cut into segments of these lengths, as a manifest has it."""
    data = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    found: list[bytes] = []
    start = 0
    for length in cuts:
        found.append(xxhash.xxh3_128(data[start : start + length]).digest())
        start += length
    return found[0].hex() if len(found) == 1 else xxhash.xxh3_128(b"".join(found)).hexdigest()


def _digest(tensor: torch.Tensor) -> str:
    return xxhash.xxh3_128(memoryview(tensor.contiguous().view(torch.uint8).numpy())).hexdigest()
