"""The HTTP server's processes: forked after the app is made, each given the next connection in its turn.

Processes that take connections from one socket by themselves share them badly: whoever wakes first takes all that wait.
"""

import asyncio
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI

from worker.lifeline import die_with_parent

_BACKLOG = 2048
_LOOK_SECONDS = 0.2
"""How soon the end of a process is seen."""


def serve(app: FastAPI, host: str, port: int, *, processes: int) -> int:
    """Serve until SIGTERM or SIGINT; answers the exit code. Where one process ends on its own, all do."""
    listener = _listen(host, port)
    if processes == 1:
        _server(app).run(sockets=[listener])
        return 0
    asked = _asked_to_stop()
    children = [_fork(app, listener) for _ in range(processes)]
    try:
        ended = _hand_out(listener, children, asked)
    finally:
        listener.close()
        _stop(children)
    return 0 if ended is None else 1


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    connections: socket.socket
    """Carries accepted connections to it."""


@dataclass
class _Asked:
    yes: bool = field(default=False)


class _HandedServer(uvicorn.Server):
    """Serves the connections that come in over a socket, beside none of its own."""

    def __init__(self, config: uvicorn.Config, connections: socket.socket) -> None:
        super().__init__(config)
        self._connections = connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self._taken: set[asyncio.Task[Any]] = set()
        asyncio.get_running_loop().add_reader(self._connections, self._take)

    def _take(self) -> None:
        _, descriptors, _, _ = socket.recv_fds(self._connections, 1, 1)
        for descriptor in descriptors:
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
            self._taken.add(task)
            task.add_done_callback(self._taken.discard)

    def _protocol(self) -> asyncio.Protocol:
        made: Any = self.config.http_protocol_class
        return made(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_level="warning", loop="uvloop", http="httptools", access_log=False, proxy_headers=False
    )


def _server(app: FastAPI) -> uvicorn.Server:
    return uvicorn.Server(_config(app))


def _hand_out(listener: socket.socket, children: list[_Child], asked: _Asked) -> _Child | None:
    """Give each new connection to the next child, until asked to stop or a child has ended; answers that one."""
    turns = cycle(children)
    listener.setblocking(False)
    while not asked.yes:
        readable, _, _ = select.select([listener], [], [], _LOOK_SECONDS)
        with suppress(BlockingIOError, ConnectionError):  # the client went away again
            if readable:
                _hand_over(listener.accept()[0], turns.__next__())
        for child in children:
            if os.waitpid(child.pid, os.WNOHANG)[0]:
                return child
    return None


def _hand_over(connection: socket.socket, child: _Child) -> None:
    with connection, suppress(OSError):  # it ends: seen at once, and all with it
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socket.send_fds(child.connections, [b"c"], [connection.fileno()])


def _listen(host: str, port: int) -> socket.socket:
    """OSError where the address is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(_BACKLOG)
    return listener


def _fork(app: FastAPI, listener: socket.socket) -> _Child:
    parent, ours, theirs = os.getpid(), *socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        listener.close()
        ours.close()
        _live(app, theirs, parent)
    theirs.close()
    return _Child(pid, ours)


def _live(app: FastAPI, connections: socket.socket, parent: int) -> NoReturn:
    code = 1
    try:
        die_with_parent(parent)
        _HandedServer(_config(app), connections).run()
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def _stop(children: list[_Child]) -> None:
    """SIGTERM to all that are left, who answer what they have begun."""
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
    for child in children:
        with suppress(ChildProcessError):
            os.waitpid(child.pid, 0)


def _asked_to_stop() -> _Asked:
    asked = _Asked()

    def remember(number: int, frame: FrameType | None) -> None:
        asked.yes = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, remember)
    return asked
