"""`ferry up` as a user starts it, watched from outside."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest


def until[T](seen: Callable[[], T | None], *, seconds: float, what: str) -> T:
    """The first true answer of `seen`; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := seen():
            return answer
        time.sleep(0.02)
    pytest.fail(f"not within {seconds} s: {what}")


@dataclass
class Service:
    """`ferry up` with one root, `data`, on a port of its own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def start(self) -> None:
        if self.process is not None:
            self.process.wait(10)
        log = self.folder / "up.log"
        command = [sys.executable, "-P", "-m", "worker", "up", "--root", f"data={self.root}"]
        command += ["--data", str(self.folder / "service"), "--port", str(self.port)]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=self.clean_environment())
        until(lambda: self.ended() or "Ferry is up." in log.read_text(), seconds=120, what="ferry up")
        assert not self.ended(), log.read_text()
        self.port = int(log.read_text().split("http://127.0.0.1:")[1].split()[0])

    def clean_environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FERRY_")}
        return inherited | {"FERRY_LEASE_SECONDS": "2"} | self.environment

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def members(self) -> list[psutil.Process]:
        """The supervisor and everything that it started."""
        if self.ended():
            return []
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def find(self, role: str) -> psutil.Process:
        """The process that plays a role: supervisor, broker, api or worker."""
        if role == "supervisor":
            return self.members()[0]
        words = {"broker": "valkey-server", "api": "-m api", "worker": "worker work"}
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            if words[role] in " ".join(child.cmdline()):
                return child
        raise AssertionError(f"no {role} among {[child.cmdline() for child in self.members()]}")

    def stop(self) -> None:
        if not self.ended():
            assert self.process is not None
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
