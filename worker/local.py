"""One job in this process, without a broker: JSON lines out, the folder published at the end."""

import json
import os
import signal
import sys
import traceback
import uuid
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .checkpoints.publish import lock_folder, partial_folder
from .engine.processes import CopyOptions
from .handlers.config import read_model
from .handlers.context import Answer, JobContext, Prepared
from .handlers.conversion import refuse_full_disk
from .handlers.model_configs import BesideModelConfigs
from .handlers.rules import GivenRules
from .handlers.run import plan, run
from .jobs.errors import BadInputError, FerryError, InternalError, error_from_os
from .jobs.locations import LocalPaths
from .jobs.misreading import Misreading
from .jobs.spec import JobRequest, JobSpec
from .jobs.state import Progress, Result
from .mapping.explain import explain
from .mapping.family import Family
from .mapping.proofs import proof_of, refused, unproven
from .mapping.registry import FAMILIES

_SUFFIX = "local"
"""Always the same, so that the next run finds what a killed one left."""

_SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)


def run_here(spec_json: str, options: CopyOptions, locations: LocalPaths) -> int:
    """Run the job and publish its output; exit code 0, 2 for bad input, 1 for the rest."""
    return _exit_code(lambda: {"result": _run(spec_json, options, locations).model_dump(mode="json")})


def plan_here(spec_json: str, options: CopyOptions, locations: LocalPaths) -> int:
    """Print the job's plan."""
    return _exit_code(lambda: {"plan": plan(_spec(spec_json), locations, options)})


def list_families() -> int:
    """Print what is supported, what is refused, and what the tests' own run proved."""
    _print({"families": [_described(family) for family in FAMILIES]})
    return 0


def explain_here(source: str) -> int:
    """Print where each Megatron value of a config comes from."""
    return _exit_code(lambda: {"explained": _explained(source)})


def _described(family: Family) -> dict[str, Any]:
    proof = proof_of(family)
    return {
        "name": family.name,
        "model_types": family.model_types,
        "architectures": family.architectures,
        "features": family.features,
        "refused": refused(family),
        "proven": None if proof is None else asdict(proof),
        "unproven": unproven(family),
    }


def _explained(source: str) -> dict[str, Any]:
    model = read_model(LocalPaths().resolve_source(source))
    values, ignored = explain(model.family, model.hf)
    return {
        "family": model.family.name,
        "values": [asdict(line) for line in values],
        "without_effect": [asdict(line) for line in ignored],
    }


def _run(spec_json: str, options: CopyOptions, locations: LocalPaths) -> Result:
    context = JobContext(
        locations=locations,
        job_id=f"local_{uuid.uuid4().hex}",
        staging_suffix=_SUFFIX,
        earlier=lambda target: (partial_folder(target, _SUFFIX),),
        lock=lock_folder,
        reserve=refuse_full_disk,
        report=lambda progress: _print({"progress": _progress(progress)}),
        # Where the copy processes use every core, the imports wait for them.
        model_configs=BesideModelConfigs(overlap=(os.cpu_count() or 1) > options.processes),
        copy_processes=options.processes,
        rules=GivenRules(limits=options.limits),
    )
    signal.signal(signal.SIGTERM, _interrupt)
    outcome = run(_spec(spec_json), context)
    match outcome:
        case Answer(result=result):
            return result
        case Prepared(staged=staged, result=result):
            staged.publish()
            return result


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that the staged folder is removed."""
    raise KeyboardInterrupt


def _spec(text: str) -> JobSpec:
    try:
        return _SPEC.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        read = Misreading.of(first, ("spec", *first["loc"]), JobRequest)
        raise BadInputError(
            "bad_request",
            f"field {read.field}",
            found=read.found,
            expected=read.expected,
            next_step=f"{read.hint}Mend the spec.",
        ) from error


def _exit_code(do: Callable[[], dict[str, Any]]) -> int:
    try:
        _print(do())
        return 0
    except KeyboardInterrupt:
        return 130
    except FerryError as error:
        return _fail(error)
    except BrokenPipeError:
        # Nobody listens any more. What was staged is gone by now; say nothing, and nothing at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(error_from_os(error))
    except Exception as error:
        traceback.print_exc()
        return _fail(_bug(error))


def _fail(error: FerryError) -> int:
    _print({"error": error.info.model_dump(mode="json")})
    return 2 if 400 <= error.info.status < 500 else 1


def _progress(progress: Progress) -> dict[str, Any]:
    return progress.model_dump(mode="json")


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _bug(error: Exception) -> InternalError:
    return InternalError(
        "internal",
        "this job",
        found=f"{type(error).__name__}: {error}",
        expected="no unforeseen error",
        next_step="Report this with the traceback above.",
    )
