"""The embedded stack as a user starts it, watched from outside: its processes by the parts that they play."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from redis import Redis

from worker.dispatch.embedded_broker import embedded_url
from worker.dispatch.tied import tied

PROJECT = Path(__file__).parents[2]
LEASE_SECONDS = 2.0
SETTINGS: dict[str, str] = {
    "FERRY_LEASE_SECONDS": str(LEASE_SECONDS),
    "FERRY_COPY_PROCESSES": "2",
    # Long enough for a retry that comes soon, short enough for the look at what is left.
    "FERRY_KEEP_PARTIALS_SECONDS": "3",
    # FERRY_MAX_FAILURES and FERRY_MAX_LOSSES keep their defaults: what a user would have.
}

Role = Literal["broker", "api", "warm", "worker", "pool", "attempt", "copier"]
_WORDS: dict[str, Role] = {"valkey-server": "broker", "-m api": "api", "model-configs": "warm", "worker work": "worker"}
_BENEATH_A_WORKER: tuple[Role, ...] = ("pool", "attempt", "copier")
_MARK = "FERRY_CHAOS"
"""In the environment of every process of the stack, so that none is lost from sight."""
_UP_SECONDS, _DOWN_SECONDS = 120, 60


def until[T](seen: Callable[[], T | None], *, seconds: float) -> T | None:
    """The first true answer of `seen`, or None where there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := seen():
            return answer
        time.sleep(0.02)
    return None


@dataclass(slots=True)
class Stack:
    """`python -m worker up` in a temporary folder, with one root, `data`."""

    folder: Path
    workers: int
    mutant: Path | None = None
    """Where the code lies that is run, when it is not the project's own."""
    url: str = ""
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def data(self) -> Path:
        return self.folder / "service"

    def start(self) -> None:
        log = self.folder / "up.log"
        command = [sys.executable, "-m", "worker", "up", "--root", f"data={self.root}", "--data", str(self.data)]
        command += ["--port", "0", "--slots", str(self.workers)]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                tied(command),
                cwd=self.mutant or PROJECT,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        until(lambda: self.exit_code() is not None or "Ferry is up." in log.read_text(), seconds=_UP_SECONDS)
        if "Ferry is up." not in log.read_text():
            raise RuntimeError(f"no stack within {_UP_SECONDS} s:\n{log.read_text()}")
        self.url = log.read_text().split("address")[1].split()[0]

    def stop(self) -> int | None:
        """Ctrl-C, as it were; answers the exit code, None where it had to be killed."""
        if self._process is None:
            return 0
        self._process.terminate()
        try:
            return self._process.wait(_DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None

    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def broker(self) -> Redis:
        """A client of the embedded server."""
        path = embedded_url(self.data).removeprefix("redis+socket://")
        return Redis(unix_socket_path=path, decode_responses=True, socket_timeout=5)

    def find(self, role: Role) -> list[psutil.Process]:
        """The processes that play a part now."""
        with suppress(psutil.Error):
            assert self._process is not None
            mains = [child for child in psutil.Process(self._process.pid).children() if _part(child) is not None]
            if role not in _BENEATH_A_WORKER:
                return [child for child in mains if _part(child) == role]
            workers = [child for child in mains if _part(child) == "worker"]
            return [process for worker in workers for process in beneath(worker)[role]]
        return []

    def left(self) -> list[psutil.Process]:
        """Whatever of the stack lives, wherever it stands in the tree."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            ours = process.environ().get(_MARK) == str(self.folder)
            return ours and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FERRY_")}
        # Copies of 1 to 5 MB take 1 to 5 s: long enough to be hit in the middle. The workers share the root's limit.
        rate = {"FERRY_IO_BYTES_PER_SECOND": str(self.workers * 1_000_000)}
        code = {"PYTHONPATH": str(self.mutant)} if self.mutant else {}
        return inherited | SETTINGS | rate | code | {_MARK: str(self.folder)}


def beneath(worker: psutil.Process) -> dict[Role, list[psutil.Process]]:
    """A worker's pool process, its attempt and that one's copy processes; empty lists where there are none."""
    roles: dict[Role, list[psutil.Process]] = {role: [] for role in _BENEATH_A_WORKER}
    generation = [worker]
    for role in _BENEATH_A_WORKER:
        generation = [child for parent in generation for child in _children(parent)]
        roles[role] = [child for child in generation if _part(child) != "warm"]
    return roles


def _children(parent: psutil.Process) -> list[psutil.Process]:
    try:
        return parent.children()
    except psutil.Error:
        return []


def _part(process: psutil.Process) -> Role | None:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return None
    return next((role for words, role in _WORDS.items() if words in command), None)
