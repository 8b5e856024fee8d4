"""A job of a command: where it runs, what it asks for there, and what is printed of it."""

import json
import os
import sys
from dataclasses import dataclass, replace
from typing import Any, assert_never

import typer

from worker.jobs.sizes import parse_size
from worker.jobs.spec import JobSpec
from worker.jobs.state import CheckpointResult, ConfigResult, Result, VerifyResult

from ..settings import server_url
from .arguments import (
    After,
    AllowPickle,
    Gpus,
    Jobs,
    Labels,
    Local,
    Memory,
    NoWait,
    Plan,
    Rate,
    Server,
    Timeout,
    Urgency,
)
from .failure import reading_arguments
from .places import Here, Place, There
from .room import refuse_without_room

_DEFAULT_JOBS = min(4, os.cpu_count() or 1)
_ONLY_HERE = {"jobs": "--jobs", "rate": "--rate", "allow_pickle": "--allow-pickle"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """For a job that runs in this process's place."""

    context: typer.Context
    local: Local = False
    jobs: Jobs = _DEFAULT_JOBS
    rate: Rate = None

    def here(self) -> Here:
        """The place of `--local`."""
        return Here(copy_processes=self.jobs, io_bytes_per_second=size_of(self.rate) if self.rate else None)

    def refuse_elsewhere(self) -> None:
        """BadParameter for what was typed, and says nothing to a server; environment variables may say it always."""
        for name, option in _ONLY_HERE.items():
            source = self.context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise typer.BadParameter(f"{option} is for --local; a server's workers have settings of their own")


@dataclass(frozen=True, slots=True, kw_only=True)
class PickleOptions(LocalOptions):
    """The same, for what may read Megatron's older format."""

    allow_pickle: AllowPickle = False

    def here(self) -> Here:
        return replace(LocalOptions.here(self), allow_pickle=self.allow_pickle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asks:
    """What a request says beside its spec."""

    priority: Urgency = None
    gpus: Gpus = None
    memory: Memory = None
    timeout: Timeout = None
    after: After = None
    label: Labels = None

    def given(self) -> dict[str, Any]:
        """The fields of a JobRequest that were given."""
        fields = {
            "priority": self.priority,
            "gpus": self.gpus,
            "memory_bytes": size_of(self.memory) if self.memory else None,
            "timeout_seconds": self.timeout,
            "depends_on": self.after or None,
            "labels": dict(map(_label, self.label)) if self.label else None,
        }
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """For a job that writes: plan it alone, leave it, and what it asks a server for."""

    plan: Plan = False
    no_wait: NoWait = False
    server: Server = None
    asks: Asks

    def refuse_beside_plan(self) -> None:
        """BadParameter for what a job that is only planned has no use for."""
        unused = [*self.asks.given(), *(["no_wait"] if self.no_wait else [])]
        if unused:
            raise typer.BadParameter(f"--plan does nothing; {', '.join(unused)} would be for a job that runs")


def size_of(text: str) -> int:
    """Bytes, as people write them."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def place_of(options: LocalOptions, server: str | None, asks: Asks | None = None) -> Place:
    """Where the job runs. BadParameter for options of the other place."""
    given = {} if asks is None else asks.given()
    if not options.local:
        options.refuse_elsewhere()
        return There(url=server or server_url(), asks=given)
    refuse_server(server)
    if given:
        raise typer.BadParameter(f"--local runs now and here; {', '.join(given)} would be for a server")
    return options.here()


def refuse_server(server: str | None) -> None:
    """BadParameter for a server that nobody will ask."""
    if server is not None:
        raise typer.BadParameter("--local works without a server; give one of --local and --server")


def convert(spec: JobSpec, here: LocalOptions, options: JobOptions) -> None:
    """Plan the job, hand it in, or see it to its end."""
    place = place_of(here, options.server, options.asks)
    if options.plan:
        options.refuse_beside_plan()
        found = plan_of(spec, place)
        print_json(found)
        refuse_without_room(found)
    else:
        carry_out(spec, place, no_wait=options.no_wait)


def carry_out(spec: JobSpec, place: Place, *, no_wait: bool) -> None:
    """Hand the job in, or see it to its end."""
    if no_wait:
        _submit(spec, place)
    else:
        finish(run(spec, place))


def plan_of(spec: JobSpec, place: Place) -> dict[str, Any]:
    """What the job would do."""
    from ..client import Client
    from .local import plan_local

    match place:
        case Here():
            return plan_local(spec, place)
        case There(url=url):
            with Client(url) as client:
                return client.plan(spec)
        case _:
            assert_never(place)


def run(spec: JobSpec, place: Place) -> Result:
    """The job's result, its progress shown."""
    from ..client import Client
    from .local import run_local
    from .progress import showing
    from .remote import run_remote

    match place:
        case Here():
            with showing(spec.kind) as show:
                return run_local(spec, place, show)
        case There(url=url, asks=asks):
            with Client(url) as client, reading_arguments():
                return run_remote(client, spec, asks)
        case _:
            assert_never(place)


def finish(result: Result) -> None:
    """Print what came of it."""
    from .tables import summary, verified

    match result:
        case ConfigResult(megatron_config=megatron_config):
            print_json(megatron_config)
        case CheckpointResult():
            sys.stdout.write(f"{summary(result)}\n")
        case VerifyResult():
            sys.stdout.write(f"{verified(result)}\n")
        case _:
            assert_never(result)


def print_json(value: Any) -> None:
    """For programs."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _submit(spec: JobSpec, place: Place) -> None:
    from ..client import Client

    match place:
        case Here():
            raise typer.BadParameter("nobody goes on with a job of --local; leave out --no-wait")
        case There(url=url, asks=asks):
            with Client(url) as client, reading_arguments():
                sys.stdout.write(f"{client.submit(spec, **asks).id}\n")
        case _:
            assert_never(place)


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is no label; write NAME=VALUE")
    return name, value
