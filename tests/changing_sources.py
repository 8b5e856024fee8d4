"""Checkpoints of every kind to read, and jobs under which they change."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from tests.integration.test_described import save_args
from tests.jobs_here import do
from tests.llama_folder import write_llama
from tests.peft_here import write_adapter
from worker.jobs.errors import BadInputError
from worker.jobs.setup_spec import SetupSpec
from worker.jobs.spec import (
    AdapterExportSpec,
    AdapterExtractSpec,
    AdapterImportSpec,
    AdapterUse,
    ExportSpec,
    ImportSpec,
    JobSpec,
    MergeSpec,
    VerifySpec,
)
from worker.jobs.state import Progress

TRACKER = "latest_checkpointed_iteration.txt"

Asked = Callable[[Path], JobSpec]


def make(folder: Path, socket: Path) -> Path:
    """`hf` and its import `mcore`, `sharded`, an `adapter` and its import `mcore_adapter`, `tuned`."""
    write_llama(folder / "hf", layers=2, hidden=64)
    (folder / "hf" / "tokenizer.json").write_text("{}")
    do(ImportSpec(source=str(folder / "hf"), target=str(folder / "mcore")), socket)
    spec = ExportSpec(source=str(folder / "mcore"), target=str(folder / "sharded"), max_shard_bytes=200_000)
    do(spec, socket)
    write_adapter(folder / "hf", folder / "adapter", target_modules=["q_proj", "k_proj", "v_proj"])
    source, target, base = (str(folder / name) for name in ("adapter", "mcore_adapter", "hf"))
    do(AdapterImportSpec(source=source, target=target, base=base), socket)
    save_args(folder / "mcore")
    merge = MergeSpec(source=base, target=str(folder / "tuned"), adapters=(AdapterUse(path=source),))
    do(merge, socket)
    return folder


def imported(here: Path) -> JobSpec:
    return ImportSpec(source=str(here / "hf"), target=str(here / "out"))


def imported_from_shards(here: Path) -> JobSpec:
    return ImportSpec(source=str(here / "sharded"), target=str(here / "out"))


def exported(here: Path) -> JobSpec:
    return ExportSpec(source=str(here / "mcore"), target=str(here / "out"))


def exported_by_config(here: Path) -> JobSpec:
    return ExportSpec(source=str(here / "mcore"), target=str(here / "out"), hf_config=str(here / "hf"))


def merged(here: Path) -> JobSpec:
    return _merge(here, "hf", "adapter")


def merged_megatron(here: Path) -> JobSpec:
    return _merge(here, "mcore", "mcore_adapter", to="megatron")


def merged_adapter(here: Path) -> JobSpec:
    return _merge(here, "hf", "mcore_adapter")


def _merge(here: Path, base: str, adapter: str, to: Any = "hf") -> JobSpec:
    adapters = (AdapterUse(path=str(here / adapter)),)
    return MergeSpec(source=str(here / base), target=str(here / "out"), adapters=adapters, to=to)


def adapter_imported(here: Path) -> JobSpec:
    return AdapterImportSpec(source=str(here / "adapter"), target=str(here / "out"), base=str(here / "hf"))


def adapter_imported_beside_megatron(here: Path) -> JobSpec:
    return AdapterImportSpec(source=str(here / "adapter"), target=str(here / "out"), base=str(here / "mcore"))


def adapter_exported(here: Path) -> JobSpec:
    return AdapterExportSpec(source=str(here / "mcore_adapter"), target=str(here / "out"))


def adapter_exported_beside_hf(here: Path) -> JobSpec:
    return AdapterExportSpec(source=str(here / "mcore_adapter"), target=str(here / "out"), base=str(here / "hf"))


def adapter_extracted(here: Path) -> JobSpec:
    return AdapterExtractSpec(source=str(here / "mcore"), tuned=str(here / "tuned"), target=str(here / "out"), rank=2)


def set_up(here: Path) -> JobSpec:
    return SetupSpec(source=str(here / "mcore"), target=str(here / "out"), profile="megatron-lm")


def set_up_from_hf(here: Path) -> JobSpec:
    return SetupSpec(source=str(here / "hf"), target=str(here / "out"), profile="megatron-lm")


def compared(here: Path) -> JobSpec:
    return VerifySpec(source=str(here / "hf"), against=str(here / "mcore"))


def at_first_progress(act: Callable[[], object], phase: str = "") -> Callable[[Progress], None]:
    """A report that does something once, when the first bytes have moved (of that phase)."""
    left = [act]

    def report(progress: Progress) -> None:
        if left and phase in ("", progress.phase):
            left.pop()()

    return report


def append_to(path: Path) -> Callable[[], object]:
    return lambda: path.write_bytes(path.read_bytes() + b"\n")


def appear(path: Path, text: str = "{}") -> Callable[[], object]:
    def act() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return act


def swap_for_another(folder: Path) -> Callable[[], object]:
    """The folder goes, and a copy of it, alike in names, sizes and times, stands in its place."""

    def act() -> None:
        shutil.copytree(folder, folder.with_name("another"))
        folder.rename(folder.with_name("gone"))
        folder.with_name("another").rename(folder)

    return act


def refused(
    spec: JobSpec,
    changed: Path,
    socket: Path,
    change: Callable[[], object],
    *,
    phase: str = "",
    allow_pickle: bool = False,
) -> str:
    """Run the job, in which the change happens; what the error says was found. Nothing is left of the job."""
    folder = Path(getattr(spec, "target", None) or getattr(spec, "source", "")).parent
    before = sorted(path.name for path in folder.iterdir())
    happened: list[bool] = []

    def act() -> None:
        change()
        happened.append(True)

    with pytest.raises(BadInputError) as caught:
        do(spec, socket, at_first_progress(act, phase), allow_pickle=allow_pickle)

    assert happened
    error = caught.value.info
    assert error.code == "source_changed"
    assert str(changed) in error.thing
    left = {path.name for path in folder.iterdir()} - {"another", "gone"}
    assert sorted(left - {changed.name}) == [name for name in before if name != changed.name]
    return error.found


def rewritten_once_read(monkeypatch: pytest.MonkeyPatch, victim: Path) -> list[Path]:
    """From now on: whoever opens this file to read it finds it written again as soon as it is closed.

    The same bytes, at a later time. The list answers whether it happened.
    """
    opened_by_python, rewritten = open, list[Path]()

    def opening(file: Any, mode: str = "r", *args: Any, **options: Any) -> IO[Any]:
        stream: Any = opened_by_python(file, mode, *args, **options)
        if str(file) == str(victim) and "r" in mode and not rewritten:
            close = stream.close

            def close_and_rewrite() -> None:
                close()
                if not rewritten:
                    rewritten.append(victim)
                    victim.write_bytes(victim.read_bytes())

            stream.close = close_and_rewrite
        return stream

    monkeypatch.setattr("io.open", opening)
    return rewritten


def set_back(path: Path) -> Callable[[], object]:
    """The last byte changes in place, and the time of the last write becomes what it was."""

    def act() -> None:
        before, data = path.stat(), bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        same_times(path, before)

    return act


def same_times(path: Path, like: os.stat_result) -> None:
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))
