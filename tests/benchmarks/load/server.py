"""The embedded broker and the API on it, without workers: what submissions meet."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
from redis import Redis

from worker.dispatch.embedded_broker import start_embedded_broker
from worker.dispatch.tied import PROJECT, tied


@dataclass(frozen=True, slots=True)
class Server:
    """A running API."""

    port: int
    process: psutil.Process
    broker_url: str

    @property
    def redis(self) -> Redis:
        return Redis(unix_socket_path=self.broker_url.removeprefix("redis+socket://"))

    def memory_bytes(self) -> int:
        """Resident, of the API's processes together, shared pages once."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(process.memory_full_info().pss for process in processes)


@contextmanager
def serving(folder: Path, *, appendfsync: str) -> Iterator[Server]:
    """Fresh data; `appendfsync` as the broker is to keep it."""
    data = folder / f"data-{time.monotonic_ns()}"
    (folder / "model").mkdir(exist_ok=True)
    data.mkdir()
    broker = start_embedded_broker(data, subprocess.DEVNULL)
    port = _free_port()
    settings = {"FERRY_BROKER_URL": broker.url, "FERRY_ROOTS": f"bench={folder}", "FERRY_DATA": str(data)}
    api = subprocess.Popen(
        tied([sys.executable, "-m", "api", "--port", str(port)]), cwd=PROJECT, env=os.environ | settings
    )
    try:
        server = Server(port, psutil.Process(api.pid), broker.url)
        server.redis.config_set("appendfsync", appendfsync)
        _wait_until_ready(port)
        yield server
    finally:
        api.terminate()
        api.wait()
        broker.process.terminate()
        broker.process.wait()


def get(connection: HTTPConnection, path: str) -> Any:
    """The answer's JSON."""
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {body[:500]!r}")
    return json.loads(body)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            get(connection, "/v1/health/ready")
            return
        except (OSError, RuntimeError):
            time.sleep(0.05)
    raise RuntimeError("the API did not start")
