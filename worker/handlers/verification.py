"""`verify:` of whatever writes a checkpoint: what was written is judged before it is published.

`tensors`, all read by the formats' own libraries, in processes of their own:
- import, export: every tensor against its source's, bit for bit;
- merge: those that no adapter touches likewise, the others within what base + products, made in fp64, can round to;
- adapter: an export likewise; an import adds what PEFT's adapter adds; an extract leaves what was reported;
- setup: an imported base as an import's; one that is linked or referred to against its manifest.

`logits`: HF's model and Megatron's on the same tokens; of a merge, base + adapters and what was written.

All but import and export, whose source tells every bit, are also held against the digests taken on the way to the disk.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from ..adapters.mcore_folder import ADAPTER
from ..adapters.merged_source import MergedSource
from ..checkpoints.iterations import iteration_folder
from ..checkpoints.torch_dist import TorchDistFolder
from ..engine.convert import Written
from ..jobs.setup_spec import SetupSpec
from ..jobs.spec import (
    AdapterExportSpec,
    AdapterExtractSpec,
    AdapterImportSpec,
    ConversionSpec,
    ExportSpec,
    ImportSpec,
    MergeSpec,
)
from ..jobs.state import LogitsFigures, Progress, Verified
from ..mapping.bindings import Model
from ..mapping.blocks import Task
from ..mapping.plan import plan_export
from .adapter_checks import adapter_reader, differing_from_extraction, differing_from_peft
from .context import JobContext
from .forked import Heard, forked
from .loading import verify_loads
from .merge_checks import differing_from_merge
from .merge_logits import unmerged_side
from .model_logits import Side, compare_logits, hf_side, megatron_side
from .quantize import BLOCK, linear_weights
from .readers import hf_reader
from .setup_checks import differing_from_setup, verify_base
from .unverified import not_verified, some

if TYPE_CHECKING:
    from ..verification.readers import TensorReader
    from .conversion import Conversion

_SETUP_ADAPTER = "adapter"


def verify_written(
    conversion: "Conversion", spec: ConversionSpec, staged: Path, written: Written, context: JobContext
) -> Verified | None:
    """The checks that the spec asks for, on what was written; BadInputError (`not_verified`) where one fails."""
    if not spec.verify:
        return None
    context.report(Progress(phase="verifying", done_bytes=0, total_bytes=conversion.bytes))
    checks = frozenset[str](spec.verify)
    tensors = _Tensors(conversion, spec, staged, written, context).verify() if "tensors" in checks else None
    logits = _verify_logits(conversion, spec, staged, context) if "logits" in checks else None
    loaded_by: int | None = None
    if isinstance(spec, SetupSpec) and "load" in checks:
        loaded_by = verify_loads(conversion, spec, staged, context)
    return Verified(tensors=tensors, logits=logits, loaded_by=loaded_by)


def _verify_logits(
    conversion: "Conversion", spec: ConversionSpec, staged: Path, context: JobContext
) -> LogitsFigures | None:
    match spec:
        case ImportSpec() | SetupSpec():
            model = conversion.model if conversion.base is None else conversion.base.model
            plan = plan_export(model, TorchDistFolder.open(iteration_folder(staged)).tensors)
            sides = hf_side(conversion.source, model), megatron_side(iteration_folder(staged), model, plan)
        case ExportSpec():
            model = conversion.model
            sides = (
                hf_side(staged, model),
                megatron_side(iteration_folder(conversion.source), model, conversion.plan),
            )
        case MergeSpec():
            model = conversion.model
            sides = unmerged_side(spec, model, context.locations), _merged_side(spec, model, staged)
        case AdapterExportSpec() | AdapterImportSpec() | AdapterExtractSpec():
            return None
        case _:
            assert_never(spec)
    return compare_logits(sides, model, context, conversion.bytes)


def _merged_side(spec: MergeSpec, model: Model, staged: Path) -> Side:
    if spec.to == "hf":
        return hf_side(staged, model)
    folder = iteration_folder(staged)
    return megatron_side(folder, model, plan_export(model, TorchDistFolder.open(folder).tensors))


@dataclass(frozen=True, slots=True)
class _Tensors:
    """What was written, seen by the formats' own libraries."""

    conversion: "Conversion"
    spec: ConversionSpec
    staged: Path
    written: Written
    context: JobContext

    def verify(self) -> int:
        """How many tensors are as they should be; BadInputError names those that are not."""
        there = verify_base(self.conversion.base, self.context)
        done, total = 0, self.conversion.bytes

        def heard(count: int) -> None:
            nonlocal done
            done = min(done + count, total)
            self.context.report(Progress(phase="verifying", done_bytes=done, total_bytes=total))

        wrong = tuple(dict.fromkeys(forked(self._differing, self.context.copy_processes, heard)))
        if wrong:
            raise not_verified(
                f"{len(wrong)} of {len(self.tasks)} tensors that were written",
                f"other bits in {some(wrong)}",
                "what the source comes to, read by the formats' own libraries",
            )
        return there + len(self.tasks)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Of all tensors that are there now: a base that is used again among them."""
        base = self.conversion.base
        own = self.conversion.plan.tasks
        if base is None or base.is_megatron:
            return own
        known = {task.target for task in own}
        return (*own, *(task for task in base.plan.tasks if task.target not in known))

    def _differing(self, number: int, count: int, heard: Heard) -> list[str]:
        """In a process of its own: every `count`-th tensor."""
        import torch

        torch.set_num_threads(1)
        tasks = self.tasks[number::count]
        match self.spec:
            case ImportSpec():
                return self._of_import(tasks, number, heard)
            case ExportSpec():
                return self._of_export(self.spec, tasks, number, heard)
            case MergeSpec():
                return self._of_merge(self.spec, tasks, number, heard)
            case AdapterExportSpec() | AdapterImportSpec() | AdapterExtractSpec():
                return self._of_adapter((number, count), tasks, heard)
            case SetupSpec():
                return self._of_setup(tasks, number, heard)
            case _:
                assert_never(self.spec)

    def _of_import(self, tasks: tuple[Task, ...], number: int, heard: Heard) -> list[str]:
        from ..verification.tensors import differing

        written = self._megatron(self.staged)
        self._refuse_another_list(number, self.tasks, written)
        return differing(tasks, hf_reader(self.conversion.source), written, heard)

    def _of_export(self, spec: ExportSpec, tasks: tuple[Task, ...], number: int, heard: Heard) -> list[str]:
        from ..verification.readers import SafetensorsReader, reading
        from ..verification.tensors import differing, differing_codes

        with reading(f"the index of {self.staged}"):
            written = SafetensorsReader(self.staged)
        source = self._megatron(self.conversion.source)
        codes = linear_weights(self.conversion.model) if spec.quantize else frozenset[str]()
        self._refuse_another_list(number, self.tasks, written, _scales(self.tasks, codes))
        plain = differing([task for task in tasks if task.target.name not in codes], source, written, heard)
        coded = [task for task in tasks if task.target.name in codes]
        return plain + differing_codes(coded, source, written, BLOCK, heard)

    def _of_merge(self, spec: MergeSpec, tasks: tuple[Task, ...], number: int, heard: Heard) -> list[str]:
        written = self._megatron(self.staged) if spec.to == "megatron" else self._hf(self.staged)
        self._refuse_another_list(number, self.tasks, written)
        assert isinstance(self.conversion.weights, MergedSource)
        wrong = differing_from_merge(tasks, self.conversion.weights, spec, written, self.context, heard)
        return wrong + self._unlike_digests(tasks, written)

    def _of_adapter(self, share: tuple[int, int], tasks: tuple[Task, ...], heard: Heard) -> list[str]:
        from ..verification.tensors import differing

        conversion, spec = self.conversion, self.spec
        written = self._megatron(self.staged) if isinstance(spec, AdapterImportSpec) else adapter_reader(self.staged)
        self._refuse_another_list(share[0], self.tasks, written)
        wrong = self._unlike_digests(tasks, written)
        match spec:
            case AdapterExportSpec():
                wrong += differing(tasks, self._megatron(conversion.source), written, heard)
            case AdapterImportSpec() if not wrong:  # else nothing that is read of it has a meaning
                wrong += differing_from_peft(conversion.source, self.staged, conversion.model, share)
            case AdapterExtractSpec():
                assert conversion.left_over is not None
                wrong += differing_from_extraction(
                    self.tasks, conversion.left_over.tensors, spec, written, share, self.context, heard
                )
            case _:
                pass
        return wrong

    def _of_setup(self, tasks: tuple[Task, ...], number: int, heard: Heard) -> list[str]:
        base = self.conversion.base
        assert base is not None
        own = tuple(task for task in tasks if ADAPTER not in task.target.name)
        fresh = tuple(task for task in tasks if ADAPTER in task.target.name)
        wrong: list[str] = []
        for place, of, every in (
            (self.staged, own, [task for task in self.tasks if ADAPTER not in task.target.name]),
            (self.staged / _SETUP_ADAPTER, fresh, [task for task in self.tasks if ADAPTER in task.target.name]),
        ):
            if not every:
                continue
            written = self._megatron(place)
            self._refuse_another_list(number, every, written)
            wrong += self._unlike_digests([task for task in of if str(task.target) in self.written.tensors], written)
            wrong += differing_from_setup(of, base, written, heard)
        return wrong

    def _megatron(self, checkpoint: Path) -> "TensorReader":
        from ..verification.readers import TorchDistReader, reading

        with reading(f"the index of {checkpoint}"):
            return TorchDistReader(iteration_folder(checkpoint))

    def _hf(self, folder: Path) -> "TensorReader":
        from ..verification.readers import SafetensorsReader, reading

        with reading(f"the index of {folder}"):
            return SafetensorsReader(folder)

    def _unlike_digests(self, tasks: Iterable[Task], written: "TensorReader") -> list[str]:
        from ..verification.tensors import unlike_digests

        cuts: dict[str, list[int]] = {}
        for part in self.conversion.parts:
            for span in part.spans:
                if span.label is not None:
                    cuts.setdefault(span.label, []).append(span.length)
        return unlike_digests(tasks, self.written.tensors, cuts, written)

    def _refuse_another_list(
        self,
        number: int,
        tasks: Iterable[Task],
        written: "TensorReader",
        beside: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """The first process alone looks; what no task makes, no task's comparison would look at."""
        from ..verification.tensors import listed_otherwise

        if number:
            return
        if names := listed_otherwise(tasks, beside or {}, written):
            raise not_verified(
                "the list of tensors that were written",
                f"other shapes, or tensors too many or too few: {some(names)}",
                "the tensors of the plan, and their shapes",
            )


def _scales(tasks: Iterable[Task], codes: frozenset[str]) -> dict[str, tuple[int, ...]]:
    """What stands beside fp8 codes: a scale for each block."""
    return {
        f"{task.target.name}_scale_inv": tuple(-(-size // BLOCK) for size in task.shape)
        for task in tasks
        if task.target.name in codes
    }
