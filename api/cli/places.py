"""Where a command does its work: in a process of this machine, or on a server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """`--local`: without server or broker."""

    copy_processes: int = 1
    io_bytes_per_second: int | None = None
    allow_pickle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """On the server at this URL."""

    url: str
    asks: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a request says beside its spec."""


Place = Here | There
