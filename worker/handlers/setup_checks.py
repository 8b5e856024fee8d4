"""`verify: tensors` of a setup: its base against where it comes from, its fresh adapter against what one is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..adapters.mcore_folder import ADAPTER, LINEAR_OUT
from ..checkpoints.publish import MANIFEST
from ..jobs.errors import BadInputError
from ..jobs.setup_spec import SetupSpec
from ..mapping.bindings import Model
from ..mapping.blocks import Plan, Task
from .context import JobContext
from .folder_manifest import against_manifest
from .linking import listed_in
from .readers import hf_reader

if TYPE_CHECKING:
    from ..verification.readers import TensorReader

Way = Literal["imported", "drawn", "linked", "referenced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseOrigin:
    """Where a setup's base comes from, and what it must be."""

    way: Way
    model: Model
    plan: Plan
    """Of all its tensors where it is imported, whether they are written or used again."""
    folder: Path
    """The iteration folder that is linked or referred to; the HF folder of an import."""

    @property
    def is_megatron(self) -> bool:
        return self.way in ("linked", "referenced")


def refuse_unverifiable(spec: SetupSpec, origin: BaseOrigin) -> None:
    """BadInputError where a check is asked that this base has nothing for."""
    if "logits" in spec.verify and origin.way != "imported":
        made = "random weights" if origin.way == "drawn" else "a Megatron checkpoint that is used as it is"
        raise _unverifiable("logits", f"{made}, which no model of another format stands beside", "a base from HF")
    if "tensors" in spec.verify and origin.is_megatron:
        listed = listed_in(origin.folder.parent)
        names = {f"{origin.folder.name}/{path.relative_to(origin.folder)}" for path in _files_in(origin.folder)}
        if listed is None or not names <= listed.files.keys():
            missing = (
                MANIFEST if listed is None else f"a word of {min(names - listed.files.keys())!r} in its {MANIFEST}"
            )
            raise _unverifiable(
                "tensors", f"base {origin.folder} without {missing}", "a manifest, as Ferry leaves it in what it writes"
            )


def verify_base(origin: BaseOrigin | None, context: JobContext) -> int:
    """Read a base that was there against its manifest; how many tensors that lists."""
    if origin is None or not origin.is_megatron:
        return 0
    return against_manifest(origin.folder.parent, context).tensors


def differing_from_setup(
    tasks: tuple[Task, ...], origin: BaseOrigin, written: "TensorReader", heard: Callable[[int], None]
) -> list[str]:
    """Names of imported tensors with other bits, and of a fresh adapter's B where it adds something already.

    Of what was drawn, the digests that were taken while it was written are all there is to know.
    """
    from ..verification.tensors import differing

    of_adapter = [task for task in tasks if ADAPTER in task.target.name and task.target.name.endswith(LINEAR_OUT)]
    wrong = [str(task.target) for task in of_adapter if bool(written.read(task.target.name, task.target.index).any())]
    if origin.way == "imported":
        own = [task for task in tasks if ADAPTER not in task.target.name]
        wrong += differing(own, hf_reader(origin.folder), written, heard)
    return wrong


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _unverifiable(check: str, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"spec field verify: {check}",
        found=found,
        expected=expected,
        next_step="Leave it out, or ask for `load` instead.",
    )
