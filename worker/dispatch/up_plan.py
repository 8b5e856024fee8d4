"""What `ferry up` was asked to start, checked before anything starts."""

import argparse
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..jobs.errors import BadInputError
from ..jobs.roots import Root, parse_root
from ..settings import WorkerSettings
from ..stores.server_check import check_server
from ..stores.servers import Servers
from .gpus import Gpu, find_gpus
from .root_rules import refuse_impossible


@dataclass(frozen=True, slots=True, kw_only=True)
class UpPlan:
    """What to start, and where."""

    settings: WorkerSettings
    host: str
    port: int
    slots: int
    """Workers for jobs without a GPU."""
    gpus: tuple[Gpu, ...] = ()
    """A worker for each."""

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def logs(self) -> Path:
        return self.settings.data / "logs"


def read_arguments(argv: list[str], settings: WorkerSettings) -> UpPlan:
    """The command line over the environment. Port 0 stays 0 until `with_free_port`."""
    parser = argparse.ArgumentParser(prog="ferry up", description="Broker, API and workers on this machine.")
    parser.add_argument("--root", action="append", default=[], metavar="NAME=PATH", help="what jobs may read and write")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8321, help="0 chooses a free one")
    parser.add_argument("--data", metavar="DIR", help="broker files and logs (default: FERRY_DATA, or ~/.ferry)")
    parser.add_argument("--slots", type=int, default=1, help="jobs without a GPU that run at the same time")
    given = parser.parse_args(argv)
    data = Path(given.data).absolute() if given.data else settings.data
    roots = _speakable(_roots(given.root) or settings.roots or _here())
    if settings.broker_url:
        check_server(Servers.of(settings.broker_url, settings.store_url))
    settings = replace(settings, data=data, roots=roots)
    refuse_impossible(settings)
    gpus = find_gpus(pretended=settings.pretend_gpus, visible=settings.visible_devices)
    slots = max(0 if gpus else 1, given.slots)
    return UpPlan(settings=settings, host=given.host, port=given.port, slots=slots, gpus=gpus)


def with_free_port(plan: UpPlan) -> UpPlan:
    """The plan with the port that it will have. BadInputError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in plan.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((plan.host, plan.port))
        except OSError as error:
            raise _address_taken(plan, error) from error
        return replace(plan, port=probe.getsockname()[1])


def _roots(entries: list[str]) -> dict[str, Root]:
    try:
        return dict(parse_root(entry) for entry in entries)
    except ValueError as error:
        raise BadInputError(
            "bad_request",
            "--root",
            found=", ".join(entries),
            expected=str(error),
            next_step="For example: ferry up --root models=/data/models",
        ) from error


def _speakable(roots: Mapping[str, Root]) -> Mapping[str, Root]:
    """FERRY_ROOTS, which tells the other processes, has no way to quote one."""
    for root in roots.values():
        if re.search("[,?]", str(root.path)):
            raise BadInputError(
                "bad_location",
                f"root {root.path}",
                found="a comma or a question mark in its path",
                expected="a path without",
                next_step="Name it through a link that has none.",
            )
    return roots


def _here() -> dict[str, Root]:
    here = Path.cwd()
    if here == Path("/"):
        raise BadInputError(
            "bad_location",
            "the current directory as a root",
            found="/",
            expected="a folder of checkpoints",
            next_step="Start from such a folder, or name it: ferry up --root NAME=PATH",
        )
    return {"here": Root(path=here)}


def _address_taken(plan: UpPlan, error: OSError) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"address {plan.host}:{plan.port}",
        found=error.strerror or str(error),
        expected="an address of this machine that is free",
        next_step="Stop what listens there, or choose another --port (0 chooses a free one).",
    )
