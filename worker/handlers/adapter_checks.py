"""`verify: tensors` of an adapter job: what was written adds what its source adds, or leaves what was reported."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.linears import base_tensors, linears
from ..adapters.matching import Pair, match
from ..adapters.peft_folder import PREFIX, WEIGHTS, PeftFolder
from ..adapters.to_peft import peft_tensors
from ..checkpoints.iterations import iteration_folder
from ..engine.computed import shared_operand
from ..engine.reading import SourceFiles
from ..jobs.spec import AdapterExtractSpec
from ..mapping.bindings import Model
from ..mapping.blocks import Task
from .context import JobContext
from .hf_source import is_hf
from .mcore_adapter import open_mcore_adapter
from .megatron_source import open_checkpoint
from .readers import hf_reader, megatron_reader

if TYPE_CHECKING:
    import torch

    from ..verification.readers import TensorReader

    Factors = tuple[float, torch.Tensor, torch.Tensor, torch.Tensor | None]
    """Scale, A, B, magnitude."""

_WEIGHT = ".weight"
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
_ELEMENTS = 2**22
_FP32 = 2.0**-24
_SHORT = 1e-5
"""Of the reported figures, which have six digits."""


def differing_from_peft(source: Path, staged: Path, model: Model, share: tuple[int, int]) -> list[str]:
    """Of an import: HF modules for which the written adapter, as an export reads it, does not add what PEFT's adds.

    scale * B @ A in fp64 on both sides, so that it holds for every form; nothing for modules without factors.
    """
    expected = dict(_peft_factors(source, model))
    found = dict(_written_factors(staged, model))
    names = sorted(expected.keys() | found.keys())[share[0] :: share[1]]
    return [name for name in names if not _adds_the_same(expected.get(name), found.get(name))]


def _peft_factors(source: Path, model: Model) -> "Iterator[tuple[str, Factors]]":
    matched = match(PeftFolder.open(source), base_tensors(model))
    files = SourceFiles()
    try:
        for address, pair in matched.pairs.items():
            yield address.name.removesuffix(_WEIGHT), _read_pair(pair, files)
    finally:
        files.close()


def _read_pair(pair: Pair, files: SourceFiles) -> "Factors":
    import torch

    from ..verification.tensors import DTYPES

    factors = pair.factors
    dtypes = (factors.a_dtype, factors.b_dtype, *((factors.magnitude,) if factors.magnitude else ()))
    a, b, *magnitude = (
        torch.from_numpy(shared_operand(operand, number, files.anew).copy()).view(DTYPES[dtype])  # pyright: ignore[reportUnknownMemberType]  # torch's stub
        for number, (operand, dtype) in enumerate(zip(pair.operands, dtypes, strict=True))
    )
    rank = factors.rank
    return factors.scale, a.reshape(rank, -1), b.reshape(-1, rank), magnitude[0] if magnitude else None


def _written_factors(staged: Path, model: Model) -> "Iterator[tuple[str, Factors]]":
    from ..verification.readers import TorchDistReader, reading
    from ..verification.tensors import expected_of

    opened = open_mcore_adapter(staged, model, linears(model))
    tensors = peft_tensors(opened.adapter.as_hf_loads_it(), opened.weights)
    with reading("the adapter as it was written"):
        reader = TorchDistReader(iteration_folder(staged))
        made = {task.target.name: expected_of(task, reader) for task in tensors.plan.tasks}
    for module, rank in tensors.ranks.items():
        name = f"{PREFIX}{module}"
        scale = opened.read.config.alpha / rank
        yield module, (scale, made[name + _A], made[name + _B], made.get(name + _MAGNITUDE))


def _adds_the_same(one: "Factors | None", other: "Factors | None") -> bool:
    """Up to fp32's rounding of a scale that went into B."""
    import torch

    if one is None or other is None:
        left = one or other
        return left is not None and not bool(left[2].any()) and left[3] is None
    (scale, a, b, magnitude), (other_scale, other_a, other_b, other_magnitude) = one, other
    if b.shape[0] != other_b.shape[0] or a.shape[1] != other_a.shape[1]:
        return False
    if (magnitude is None) != (other_magnitude is None):
        return False
    if (
        magnitude is not None
        and other_magnitude is not None
        and not torch.equal(magnitude.float(), other_magnitude.float())
    ):
        return False
    a, other_a = a.double(), other_a.double()
    for start in range(0, b.shape[0], each := max(1, _ELEMENTS // a.shape[1])):
        rows, other_rows = (matrix[start : start + each].double() for matrix in (b, other_b))
        apart = (scale * (rows @ a) - other_scale * (other_rows @ other_a)).abs()
        if not bool((apart <= 4 * _FP32 * abs(scale) * (rows.abs() @ a.abs())).all()):
            return False
    return True


def differing_from_extraction(
    tasks: tuple[Task, ...],
    left_over: Mapping[str, Mapping[str, float]],
    spec: AdapterExtractSpec,
    written: "TensorReader",
    share: tuple[int, int],
    context: JobContext,
    heard: Callable[[int], None],
) -> list[str]:
    """Modules whose written factors do not leave of tuned - base what was reported; saved ones with other bits."""
    from ..verification.tensors import differing

    base, tuned = (_model_reader(place, spec, context) for place in (spec.source, spec.tuned))
    saved = [task for task in tasks if not task.target.name.endswith((_A, _B))]
    wrong = differing(saved[share[0] :: share[1]], tuned, written, heard)
    for name, told in list(left_over.items())[share[0] :: share[1]]:
        module = f"{PREFIX}{name.removesuffix(_WEIGHT)}"
        a, b = (written.read(module + part, ()).double() for part in (_A, _B))
        difference = tuned.read(name, ()).float() - base.read(name, ()).float()
        whole, rest = _rest(difference, 0 * a, b), _rest(difference, a, b)
        if abs(whole - told["norm"]) > _SHORT * whole or abs(rest - told["relative_error"] * whole) > _SHORT * whole:
            wrong.append(module)
        heard((a.numel() + b.numel()) * 4)
    return wrong


def _model_reader(location: str, spec: AdapterExtractSpec, context: JobContext) -> "TensorReader":
    place = context.locations.resolve_source(location)
    if is_hf(place):
        return hf_reader(place)
    hf_config = None if spec.hf_config is None else context.locations.resolve_source(spec.hf_config)
    opened = open_checkpoint(place, hf_config, allow_pickle=context.locations.allow_pickle)
    return megatron_reader(place, opened.plan)


def _rest(difference: "torch.Tensor", a: "torch.Tensor", b: "torch.Tensor") -> float:
    total = 0.0
    for start in range(0, b.shape[0], each := max(1, _ELEMENTS // a.shape[1])):
        rows = slice(start, start + each)
        total += float((difference[rows].double() - b[rows] @ a).square().sum())
    return total**0.5


def adapter_reader(folder: Path) -> "TensorReader":
    """A PEFT folder's tensors, by safetensors' own reader."""
    from ..verification.readers import SafetensorsReader

    return SafetensorsReader(folder, single=WEIGHTS)
