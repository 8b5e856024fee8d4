"""The `adapter` job's extract: a PEFT adapter out of the difference of two checkpoints, tensor by tensor."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.linears import base_tensors, linears
from ..adapters.peft_config import ADAPTER_CONFIG
from ..adapters.peft_folder import PREFIX, WEIGHTS
from ..adapters.peft_written import WrittenConfig
from ..checkpoints.dtypes import BY_SAFETENSORS
from ..checkpoints.extents import Item, Literal, Zeros
from ..checkpoints.identity import identities
from ..checkpoints.iterations import iteration_folder
from ..checkpoints.safetensors_folder import lay_out_file
from ..checkpoints.source import Source
from ..engine.reading import SourceFiles, same_bytes
from ..jobs.errors import BadInputError
from ..jobs.locations import Locations
from ..jobs.spec import AdapterExtractSpec
from ..jobs.state import Progress
from ..mapping.bindings import copies
from ..mapping.blocks import Address, Block, Plan, Task
from .adapter_base import OpenedModel, base_name, open_base
from .adapter_export import other_modules
from .context import JobContext
from .conversion import Conversion, LeftOver
from .hf_source import STORED, is_hf, refuse_hf_config
from .unverified import refuse_older_format

if TYPE_CHECKING:
    from ..engine.arithmetic import Floats

_WEIGHT = ".weight"
_A, _B = ".lora_A.weight", ".lora_B.weight"


def prepare(spec: AdapterExtractSpec, locations: Locations) -> Conversion:
    """All but the factors, which are zeros here. Reads what is no linear layer, to see that it did not change."""
    source, tuned_at = locations.resolve_source(spec.source), locations.resolve_source(spec.tuned)
    target = locations.resolve_target(spec.target)
    for place in (source, tuned_at):
        if spec.verify and not is_hf(place):
            refuse_older_format(iteration_folder(place), "verify tensors")
    refuse_hf_config(spec.hf_config, source, tuned_at)
    hf_config = None if spec.hf_config is None else locations.resolve_source(spec.hf_config)
    base, tuned = (open_base(place, hf_config, locations) for place in (source, tuned_at))
    pair = _Pair(base=base, tuned=tuned, places=(source, tuned_at))
    pair.refuse_another_model()
    modules = pair.modules()
    saved = pair.changed(save=spec.save_others)
    tasks = [*_factor_tasks(pair, modules, spec), *_saved_tasks(pair, saved)]
    items = tuple(map(pair.item, tasks))
    written = WrittenConfig(
        base=base_name(spec.base_name, source, source),
        alpha=spec.rank,
        ranks=dict.fromkeys(modules, spec.rank),
        others=other_modules(base.model, set(modules)),
        saved={name.rpartition(".")[0] for name in saved},
    )
    return Conversion(
        kind="adapter",
        source=source,
        target=target,
        model=base.model,
        weights=tuned.weights,
        plan=Plan(tasks=tuple(tasks)),
        items=items,
        files=(lay_out_file(WEIGHTS, items),),
        small_files={ADAPTER_CONFIG: written.as_json()},
        carried={},
        sources=identities(pair.files()),
    )


def extracted(conversion: Conversion, spec: AdapterExtractSpec, context: JobContext) -> Conversion:
    """The same with its factors, and what they leave."""
    hf_config = None if spec.hf_config is None else context.locations.resolve_source(spec.hf_config)
    places = (conversion.source, context.locations.resolve_source(spec.tuned))
    base, tuned = (open_base(place, hf_config, context.locations) for place in places)
    pair = _Pair(base=base, tuned=tuned, places=places)
    made = _Made()
    factors = [task.target.name for task in conversion.plan.tasks if task.target.name.endswith(_A)]
    modules, dtype = [name.removeprefix(PREFIX).removesuffix(_A) for name in factors], STORED[spec.dtype]
    total = sum(pair.tuned.weights.tensors[module + _WEIGHT].nbytes for module in modules)
    done = 0
    for module in modules:
        made.add(module, pair, spec.rank, dtype)
        done += pair.tuned.weights.tensors[module + _WEIGHT].nbytes
        context.report(Progress(phase="reading", done_bytes=done, total_bytes=total))
    items = tuple(replace(item, extents=made.extents.get(item.name, item.extents)) for item in conversion.items)
    return replace(conversion, items=items, files=(lay_out_file(WEIGHTS, items),), left_over=made.left_over())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Two checkpoints of one model, as HF's tensors."""

    base: OpenedModel
    tuned: OpenedModel
    places: tuple[Path, Path]

    def linear(self) -> frozenset[str]:
        """Names of the linear layers that PEFT can adapt."""
        layers = (layer for layer in linears(self.base.model) if not layer.is_mtp)
        return frozenset(piece.module for layer in layers for piece in layer.pieces)

    def modules(self) -> tuple[str, ...]:
        """Those in the checkpoint's order, but for kinds (`q_proj`) of which none differs.

        BadInputError where there is none. A kind that was trained shows it in its first bytes.
        """
        linear = self.linear()
        found = [module for module in map(_module, self.tuned.weights.tensors) if module in linear]
        changed: set[str] = set()
        for module in found:
            if _kind(module) not in changed and self._differs(module + _WEIGHT):
                changed.add(_kind(module))
        if not changed:
            raise _nothing(self.places)
        return tuple(module for module in found if _kind(module) in changed)

    def refuse_another_model(self) -> None:
        """BadInputError where the two do not have the same tensors in the same shapes."""
        base, tuned = self.base.weights.tensors, self.tuned.weights.tensors
        for one, other, place in ((base, tuned, self.places[1]), (tuned, base, self.places[0])):
            for name, tensor in one.items():
                if name in copies(self.base.model):
                    continue
                found = other[name].shape if name in other else None
                if found != tensor.shape:
                    raise BadInputError(
                        "bad_tensor" if found else "missing_tensor",
                        f"checkpoint {place}: tensor {name!r}",
                        found="no such tensor" if found is None else f"shape {list(found)}",
                        expected=f"shape {list(tensor.shape)}, as in the other checkpoint",
                        next_step="Give the very base that the checkpoint was tuned from.",
                    )

    def changed(self, *, save: bool) -> tuple[str, ...]:
        """Tensors that differ and are no linear layers' weights. BadInputError unless they may be saved whole."""
        linear, known = self.linear(), base_tensors(self.base.model)
        shared = [name for name in self.tuned.weights.tensors if name in self.base.weights.tensors]
        found = tuple(name for name in shared if _module(name) not in linear and self._differs(name))
        for name in found:
            can_be_saved = name.endswith(_WEIGHT) and known.is_loaded(name)
            if not save or not can_be_saved:
                raise _not_linear(name, self.places[1], can_be_saved=can_be_saved)
        whole = {name.rpartition(".")[0] for name in found}
        return tuple(name for name in shared if name.rpartition(".")[0] in whole)

    def _differs(self, name: str) -> bool:
        base, tuned = self.base.weights, self.tuned.weights
        if base.tensors[name].dtype == tuned.tensors[name].dtype:
            return not same_bytes(base.whole(name), tuned.whole(name))
        return bool(difference(self.base.weights, self.tuned.weights, name).any())

    def item(self, task: Task) -> Item:
        """Factors as zeros yet; saved tensors as they are."""
        name = task.target.name
        own = self.tuned.weights.whole(name.removeprefix(PREFIX)) if not name.endswith((_A, _B)) else None
        zeros = (Zeros(prod(task.shape) * BY_SAFETENSORS[task.dtype].item_bytes),)
        return Item(name=name, index=(), stack=(), dtype=task.dtype, shape=task.shape, extents=own or zeros)

    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        weights = (self.base.weights, self.tuned.weights)
        read = {path for source in weights for path in source.files_of(source.tensors)}
        return (*sorted(read), *self.base.described_by, *self.tuned.described_by)


class _Made:
    """Factors that were found, and what they leave."""

    def __init__(self) -> None:
        self.extents: dict[str, tuple[Literal]] = {}
        self.left: dict[str, dict[str, float]] = {}
        self._norm = 0.0
        self._rest = 0.0

    def add(self, module: str, pair: _Pair, rank: int, dtype: str) -> None:
        """One layer's."""
        from ..engine.arithmetic import narrowed, widened
        from ..engine.extraction import LowRank, low_rank, norm, rest

        matrix = difference(pair.base.weights, pair.tuned.weights, module + _WEIGHT)
        found = low_rank(matrix, rank)
        a, b = narrowed(found.a, dtype), narrowed(found.b, dtype)
        written = LowRank(widened(a, dtype).reshape(found.a.shape), widened(b, dtype).reshape(found.b.shape))
        whole, left = norm(matrix), rest(matrix, written)
        self.extents[f"{PREFIX}{module}{_A}"] = (Literal(a.tobytes()),)
        self.extents[f"{PREFIX}{module}{_B}"] = (Literal(b.tobytes()),)
        self.left[module + _WEIGHT] = {"norm": _short(whole), "relative_error": _short(left / whole if whole else 0.0)}
        self._norm += whole**2
        self._rest += left**2

    def left_over(self) -> LeftOver:
        """The report."""
        error = sqrt(self._rest / self._norm) if self._norm else 0.0
        return LeftOver(relative_error=_short(error), tensors=self.left)


def difference(base: Source, tuned: Source, name: str) -> "Floats":
    """tuned - base in fp32: [rows, the rest of its axes taken together]."""
    import numpy as np

    files = SourceFiles()
    try:
        found = _floats(tuned, name, files)
        return np.subtract(found, _floats(base, name, files)).reshape(max(1, tuned.tensors[name].shape[0]), -1)
    finally:
        files.close()


def _floats(source: Source, name: str, files: SourceFiles) -> "Floats":
    """A whole tensor."""
    import numpy as np

    from ..engine.arithmetic import widened

    dtype = source.tensors[name].dtype
    pieces = [widened(files.whole(extent), dtype) for extent in source.whole(name)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _factor_tasks(pair: _Pair, modules: Iterable[str], spec: AdapterExtractSpec) -> Iterator[Task]:
    for module in modules:
        rows, columns = pair.tuned.weights.tensors[module + _WEIGHT].shape
        for part, shape in ((_A, (spec.rank, columns)), (_B, (rows, spec.rank))):
            yield Task(
                target=Address(f"{PREFIX}{module}{part}"),
                dtype=STORED[spec.dtype],
                shape=shape,
                blocks=(Block(Address(module + _WEIGHT), 0, rows),),
            )


def _saved_tasks(pair: _Pair, saved: Iterable[str]) -> Iterator[Task]:
    for name in saved:
        tensor = pair.tuned.weights.tensors[name]
        blocks = (Block(Address(name), 0, tensor.shape[0]),)
        yield Task(target=Address(f"{PREFIX}{name}"), dtype=tensor.dtype, shape=tensor.shape, blocks=blocks)


def _kind(module: str) -> str:
    return module.rpartition(".")[2]


def _module(name: str) -> str:
    return name.removesuffix(_WEIGHT) if name.endswith(_WEIGHT) else ""


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _nothing(places: tuple[Path, Path]) -> BadInputError:
    return BadInputError(
        "bad_tensor",
        f"checkpoints {places[0]} and {places[1]}",
        found="no linear layer that differs",
        expected="a difference to make an adapter of",
        next_step="Check that the second one was trained.",
    )


def _not_linear(name: str, place: Path, *, can_be_saved: bool) -> BadInputError:
    step = "Save such modules whole beside the factors: `ferry adapter extract ... --save-others`."
    return BadInputError(
        "bad_tensor",
        f"checkpoint {place}: tensor {name!r}",
        found="other values than in the base",
        expected="differences in the weights of linear layers alone, which LoRA can express",
        next_step=step if can_be_saved else "Tune without it; PEFT saves no such tensor for a layer with factors.",
    )
