"""Where upstream's config object is built: in a process beside the copy, or in a warm one behind a socket."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from ..jobs.errors import ErrorInfo, FerryError, InternalError, TransientError, error_from_info
from ..mapping.model_config import MegatronValues, build, to_json_dict

MODEL_CONFIG = "model_config.json"
"""What it is written as."""

_START_SECONDS = 600.0
"""Importing upstream's config classes takes 3 to 10 s; a cold disk and a machine far too busy are allowed for."""


@dataclass(slots=True)
class BesideModelConfigs:
    """A process of its own for one config. `overlap`: it imports while the bytes are copied, at low priority."""

    overlap: bool
    _request: bytes = field(default=b"", init=False)
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    _log: IO[bytes] = field(default_factory=tempfile.TemporaryFile, init=False)
    """Upstream greets every import with a page of warnings; it is shown only where building failed."""

    def start(self, values: MegatronValues) -> None:
        self._request = json.dumps(asdict(values)).encode()
        if self.overlap:
            self._process = self._launch("nice")

    def result(self) -> dict[str, object]:
        process = self._process = self._process or self._launch()
        try:
            output, _ = process.communicate(timeout=_START_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise _unreachable(Path("model-config"), f"no answer within {_START_SECONDS:.0f} s") from error
        if process.returncode:
            self._log.seek(0)
            sys.stderr.write(self._log.read().decode(errors="replace"))
        return _read_answer(output)

    def _launch(self, *prefix: str) -> "subprocess.Popen[bytes]":
        """The process, with its request written: it is small enough for the pipe."""
        command = [*prefix, sys.executable, "-P", "-m", "worker", "model-config", str(os.getpid())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        assert process.stdin is not None  # PIPE
        process.stdin.write(self._request)
        process.stdin.close()
        process.stdin = None
        return process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._log.close()


@dataclass(slots=True)
class WarmModelConfigs:
    """Asks the warm process that listens on a unix socket; waits while that one still starts."""

    path: Path
    _connection: socket.socket | None = field(default=None, init=False)

    def start(self, values: MegatronValues) -> None:
        self._connection = _connect(self.path)
        self._connection.sendall(json.dumps(asdict(values)).encode())
        self._connection.shutdown(socket.SHUT_WR)

    def result(self) -> dict[str, object]:
        assert self._connection is not None  # start() comes first
        with self._connection as connection:
            return _read_answer(_read_all(connection))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def serve(path: Path) -> None:
    """Import upstream's classes once, then answer each connection; ends when its process is killed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(16)
    import_upstream()
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(_START_SECONDS)
            try:
                connection.sendall(answer(_read_all(connection)))
            except OSError:
                continue  # The asker went away; the next one matters.


def answer(request: bytes) -> bytes:
    """`{"config": ...}` or `{"error": ...}` for a MegatronValues in JSON."""
    try:
        config = to_json_dict(build(MegatronValues(**json.loads(request))))
        return json.dumps({"config": config}).encode()
    except FerryError as error:
        return json.dumps({"error": error.info.model_dump()}).encode()
    except Exception as error:
        traceback.print_exc()
        return json.dumps({"error": _bug(error).info.model_dump()}).encode()


def import_upstream() -> None:
    """Import upstream's config classes, for a process that builds configs and never runs a model.

    Megatron compiles its fused functions when it is imported, which loads all of torch's compiler: 2 s and 70 MiB.
    """
    import torch

    torch.compile = _uncompiled
    import megatron.training.models.gpt  # noqa: F401  # pyright: ignore[reportUnusedImport]  # for the import alone


def _uncompiled(model: Callable[..., Any] | None = None, **options: object) -> Callable[..., Any]:
    """`torch.compile`, as a call or as a decorator with options, leaving the function as it is."""
    return model or _uncompiled


def _connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            return connection
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                raise _unreachable(path, os.strerror(error.errno or 0)) from error
            time.sleep(0.05)


def _read_all(connection: socket.socket) -> bytes:
    pieces: list[bytes] = []
    while piece := connection.recv(2**16):
        pieces.append(piece)
    return b"".join(pieces)


def _read_answer(text: bytes) -> dict[str, object]:
    if not text:
        raise _unreachable(Path("model-config"), "its end without an answer")
    decoded: dict[str, Any] = json.loads(text)
    if "error" in decoded:
        raise error_from_info(ErrorInfo.model_validate(decoded["error"]))
    return decoded["config"]


def _unreachable(path: Path, found: str) -> TransientError:
    return TransientError(
        "attempt_lost",
        f"the process that builds Megatron's config ({path})",
        found=found,
        expected="an answer",
        next_step="Retry; if it repeats, read the worker's log.",
    )


def _bug(error: Exception) -> InternalError:
    return InternalError(
        "internal",
        "building Megatron's config",
        found=f"{type(error).__name__}: {error}",
        expected="no unforeseen error",
        next_step="Report this with the traceback from the worker's log.",
    )
