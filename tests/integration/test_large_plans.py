"""The largest open models, from headers alone: planned in seconds with little memory, and a part of one done."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.large_stand_ins import STAND_INS, write_stand_in
from worker.checkpoints.extents import is_computed
from worker.engine.part_queue import ListedParts
from worker.engine.processes import Copy, CopyOptions, do_parts
from worker.handlers import import_checkpoint
from worker.jobs.locations import LocalPaths
from worker.jobs.spec import ImportSpec

_PEAK = "import resource; peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss"
_RUN = "import subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode"
_MEASURED = f"{_RUN}; {_PEAK}; print(peak); sys.exit(code)"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("deepseek-v3", 682.6e9), ("kimi-k2", 1026.4e9), ("llama-405b", 405.9e9), ("qwen3-235b", 235.1e9)],
)
def test_the_largest_models_are_planned_in_less_than_a_gigabyte(name: str, parameters: float, tmp_path: Path) -> None:
    write_stand_in(tmp_path / "hf", STAND_INS[name])
    spec = json.dumps({"kind": "import", "source": str(tmp_path / "hf"), "target": "/dev/shm/ferry-no-such-output"})

    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, sys.executable, "-m", "worker", "plan", spec],
        capture_output=True,
        text=True,
        check=False,
    )

    *_, line, peak_kilobytes = done.stdout.splitlines()
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:  # this machine's memory could never hold it, which is what a plan is for
        assert answer["error"]["code"] == "bad_location"
        assert f"{int(parameters * 2):,}"[:3] in answer["error"]["expected"]
    else:
        assert answer["plan"]["bytes"] / 2 == pytest.approx(parameters, rel=1e-3)
        assert answer["plan"]["memory_bound_bytes"] < 2**30
    assert int(peak_kilobytes) < 1_000_000


def test_a_part_of_deepseek_v3_is_done(tmp_path: Path) -> None:
    """Its fp8 weights are holes, which mean zeros; its target file is as long as it will be."""
    write_stand_in(tmp_path / "hf", STAND_INS["deepseek-v3"])
    spec = ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore"), part_bytes=64 * 2**20)
    conversion = import_checkpoint.prepare(spec, LocalPaths())
    computed = [
        number
        for number, part in enumerate(conversion.parts)
        if any(is_computed(extent) for span in part.spans for extent in span.extents)
    ]
    number = computed[len(computed) // 2]
    part = conversion.parts[number]
    file = tmp_path / "out" / part.file
    file.parent.mkdir(parents=True)
    with file.open("xb") as made:
        made.truncate(next(target.size for target in conversion.files if target.path == part.file))

    queue = ListedParts([number])
    do_parts(conversion.parts, queue, Copy(tmp_path / "out"), CopyOptions(), lambda _: None)

    segments = queue.finished[number]
    assert sum(segment.length for segment in segments) == part.bytes
    assert [segment.label for segment in segments if segment.label]
