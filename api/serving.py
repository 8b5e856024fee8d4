"""The HTTP server's processes: forked after the app is made, all of them taking connections from one socket."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from worker.lifeline import die_with_parent

_BACKLOG = 2048


def serve(app: FastAPI, host: str, port: int, *, processes: int) -> int:
    """Serve until SIGTERM or SIGINT; answers the exit code. Where one process ends on its own, all do."""
    listener = _listen(host, port)
    if processes == 1:
        return _serve(app, listener)
    children = [_fork(lambda: _serve(app, listener)) for _ in range(processes)]
    asked = _pass_on(children)
    first = os.wait()[1]
    _signal(children, signal.SIGTERM)
    for _ in children[1:]:
        os.wait()
    return 0 if asked() else os.waitstatus_to_exitcode(first) or 1


def _serve(app: FastAPI, listener: socket.socket) -> int:
    config = uvicorn.Config(
        app, log_level="warning", loop="uvloop", http="httptools", access_log=False, proxy_headers=False
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def _listen(host: str, port: int) -> socket.socket:
    """OSError where the address is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(_BACKLOG)
    return listener


def _fork(run: Callable[[], int]) -> int:
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _live(run, parent)
    return pid


def _live(run: Callable[[], int], parent: int) -> NoReturn:
    code = 1
    try:
        die_with_parent(parent)
        code = run()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _pass_on(children: list[int]) -> Callable[[], bool]:
    """SIGTERM and SIGINT go to the children, who answer what they have begun; whether one came, as a question."""
    came = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        _signal(children, signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    return lambda: came


def _signal(children: list[int], number: signal.Signals) -> None:
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
