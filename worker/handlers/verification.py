"""`verify:` of a conversion: its tensors in processes of their own, and its logits; judged before it is published."""

import json
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.iterations import iteration_folder
from ..jobs.errors import (
    ErrorInfo,
    FerryError,
    InternalError,
    error_from_info,
    error_from_os,
)
from ..jobs.spec import ExportSpec, ImportSpec
from ..jobs.state import LogitsFigures, Progress, Verified
from ..lifeline import die_with_parent
from ..mapping.quantization import quantized
from .config import read_record
from .context import JobContext
from .model_logits import compare_logits, hf_side, megatron_side
from .quantize import BLOCK, linear_weights
from .unverified import lost, not_verified, some

if TYPE_CHECKING:
    from ..verification.readers import SafetensorsReader
    from .conversion import Conversion


def verify_written(
    conversion: "Conversion", spec: ImportSpec | ExportSpec, staged: Path, context: JobContext
) -> Verified | None:
    """The checks that the spec asks for, on what was written; BadInputError (`not_verified`) where one fails."""
    if not spec.verify:
        return None
    context.report(Progress(phase="verifying", done_bytes=0, total_bytes=conversion.bytes))
    tensors = _verify_tensors(conversion, spec, staged, context) if "tensors" in spec.verify else None
    logits = _verify_logits(conversion, staged, context) if "logits" in spec.verify else None
    return Verified(tensors=tensors, logits=logits)


def _verify_logits(conversion: "Conversion", staged: Path, context: JobContext) -> LogitsFigures:
    folders = _iterations(conversion, staged)
    hf = conversion.source if conversion.kind == "import" else staged
    sides = hf_side(hf), megatron_side(folders, conversion.model)
    return compare_logits(sides, conversion.model, context, conversion.bytes)


def _iterations(conversion: "Conversion", staged: Path) -> Path:
    """The Megatron side's iteration folder."""
    if conversion.kind == "import":
        return (staged / conversion.files[0].path).parent
    return iteration_folder(conversion.source)


def _verify_tensors(conversion: "Conversion", spec: ImportSpec | ExportSpec, staged: Path, context: JobContext) -> int:
    def compared(number: int, count: int, heard: Callable[[int], None]) -> list[str]:
        return _differing(conversion, spec, staged, (number, count), heard)

    done = 0

    def heard(count: int) -> None:
        nonlocal done
        done = min(done + count, conversion.bytes)
        context.report(Progress(phase="verifying", done_bytes=done, total_bytes=conversion.bytes))

    wrong = _forked(compared, context.copy_processes, heard)
    if wrong:
        raise not_verified(
            f"{len(wrong)} of {len(conversion.plan.tasks)} tensors that were written",
            f"other bits in {some(wrong)}",
            "what the source holds, read by the formats' own libraries",
        )
    return len(conversion.plan.tasks)


def _differing(
    conversion: "Conversion",
    spec: ImportSpec | ExportSpec,
    staged: Path,
    share: tuple[int, int],
    heard: Callable[[int], None],
) -> list[str]:
    """In a process of its own: every `share[1]`-th tensor."""
    import torch

    from ..verification.readers import SafetensorsReader, TorchDistReader, reading
    from ..verification.tensors import differing, differing_codes, listed_otherwise

    torch.set_num_threads(1)
    number, count = share
    tasks = conversion.plan.tasks[number::count]
    codes = linear_weights(conversion.model) if isinstance(spec, ExportSpec) and spec.quantize else frozenset[str]()
    with reading(f"the indexes of {conversion.source} and {staged}"):
        megatron = TorchDistReader(_iterations(conversion, staged))
        hf = _hf_reader(conversion.source) if conversion.kind == "import" else SafetensorsReader(staged)
        written = megatron if conversion.kind == "import" else hf
        if number == 0:
            _refuse_another_list(listed_otherwise(conversion.plan.tasks, _scales(conversion, codes), written))
    if conversion.kind == "import":
        return differing(tasks, hf, megatron, heard)
    plain = differing([task for task in tasks if task.target.name not in codes], megatron, hf, heard)
    return plain + differing_codes([task for task in tasks if task.target.name in codes], megatron, hf, BLOCK, heard)


def _hf_reader(source: Path) -> "SafetensorsReader":
    from ..verification.readers import SafetensorsReader

    way = quantized(read_record(source))
    return SafetensorsReader(source, way.block if way else (BLOCK, BLOCK))


def _scales(conversion: "Conversion", codes: frozenset[str]) -> dict[str, tuple[int, ...]]:
    """What stands beside fp8 codes: a scale for each block."""
    return {
        f"{task.target.name}_scale_inv": tuple(-(-size // BLOCK) for size in task.shape)
        for task in conversion.plan.tasks
        if task.target.name in codes
    }


def _refuse_another_list(names: list[str]) -> None:
    if names:
        raise not_verified(
            "the list of tensors that were written",
            f"other shapes, or tensors too many or too few: {some(names)}",
            "the tensors of the plan, and their shapes",
        )


def _forked(
    work: Callable[[int, int, Callable[[int], None]], list[str]], count: int, heard: Callable[[int], None]
) -> list[str]:
    """`work` in `count` forked processes; what they answer, in one list. Their memory goes with them."""
    parent = os.getpid()
    children: list[tuple[int, int]] = []
    try:
        for number in range(count):
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                _live(work, number, count, parent, writing)
            os.close(writing)
            children.append((pid, reading))
        return [name for _, reading in children for name in _listen(reading, heard)]
    finally:
        for pid, reading in children:
            os.close(reading)
            _end(pid)


def _live(
    work: Callable[[int, int, Callable[[int], None]], list[str]], number: int, count: int, parent: int, telling: int
) -> None:
    """Never returns."""
    code = 1
    try:
        die_with_parent(parent)

        def heard(moved: int) -> None:
            os.write(telling, json.dumps({"moved": moved}).encode() + b"\n")

        try:
            answer: dict[str, Any] = {"wrong": work(number, count, heard)}
        except FerryError as error:
            answer = {"error": error.info.model_dump()}
        except OSError as error:
            answer = {"error": error_from_os(error).info.model_dump()}
        except BaseException as error:  # PyTorch's CheckpointException is no Exception.
            traceback.print_exc()
            answer = {"error": _bug(error).info.model_dump()}
        os.write(telling, json.dumps(answer).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def _listen(reading: int, heard: Callable[[int], None]) -> list[str]:
    with os.fdopen(reading, closefd=False) as lines:
        for line in lines:
            answer: Mapping[str, Any] = json.loads(line)
            if "moved" in answer:
                heard(answer["moved"])
            elif "error" in answer:
                raise error_from_info(ErrorInfo.model_validate(answer["error"]))
            else:
                return answer["wrong"]
    raise lost()


def _end(pid: int) -> None:
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _bug(error: BaseException) -> InternalError:
    return InternalError(
        "internal",
        "verifying tensors",
        found=f"{type(error).__name__}: {error}",
        expected="no unforeseen error",
        next_step="Report this with the traceback from the worker's log.",
    )
