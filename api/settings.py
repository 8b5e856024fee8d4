"""What the API and the command line are told by their environment: read once, in main, and passed down."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.jobs.errors import BadInputError
from worker.jobs.roots import parse_roots, paths_of
from worker.jobs.store import Limits
from worker.stores.servers import read_servers

DEFAULT_LIMITS = Limits()
_PROCESSES = 4
"""The store serves no more submissions than so many send; among fewer, connections are spread worse."""
DEFAULT_URL = "http://127.0.0.1:8321"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """The HTTP server's settings. The broker's URL also names the job store, unless the store has one of its own."""

    broker_url: str
    roots: Mapping[str, Path]
    store_url: str | None = None
    processes: int = 1
    """How many serve requests."""
    limits: Limits = DEFAULT_LIMITS
    """Of the jobs that it accepts."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "ApiSettings":
        """BadInputError names the variable that is missing or cannot be read."""
        found = os.environ if environ is None else environ
        broker_url, store_url = read_servers(found)
        if broker_url is None:
            raise _wrong("FERRY_BROKER_URL", "nothing", "redis://..., rediss://... or redis+socket:///...")
        try:
            roots = paths_of(parse_roots(found.get("FERRY_ROOTS", "")))
        except ValueError as error:
            raise _wrong("FERRY_ROOTS", repr(found["FERRY_ROOTS"]), str(error)) from error
        return cls(
            broker_url=broker_url,
            roots=roots,
            store_url=store_url,
            processes=_count(found, "FERRY_API_PROCESSES", _PROCESSES),
            limits=Limits(
                failures=_count(found, "FERRY_MAX_FAILURES", DEFAULT_LIMITS.failures),
                losses=_count(found, "FERRY_MAX_LOSSES", DEFAULT_LIMITS.losses),
            ),
        )


def server_url(environ: Mapping[str, str] | None = None) -> str:
    """Where the command line and the client look for the server."""
    found = os.environ if environ is None else environ
    return found.get("FERRY_URL") or DEFAULT_URL


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal() or int(text) == 0:
        raise _wrong(name, repr(text), "a whole number above 0")
    return int(text)


def _wrong(name: str, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"environment variable {name}",
        found=found,
        expected=expected,
        next_step="Set it, or let `ferry up` start the API, which sets it.",
    )
