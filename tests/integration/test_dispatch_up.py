"""`ferry up`: a whole service from one command, and nothing left of it afterwards."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

PROJECT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "worker", "up"]


@dataclass
class Up:
    """One `up` command on a data folder of its own."""

    folder: Path
    arguments: tuple[str, ...] = ("--port", "0")
    process: "subprocess.Popen[str] | None" = field(default=None)
    output: str = ""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start it and wait for its greeting."""
        self.process = subprocess.Popen(
            [*COMMAND, "--data", str(self.data), *self.arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if line.startswith("Ctrl-C"):
                return
        pytest.fail(f"`up` ended: {self.output}")

    @property
    def port(self) -> int:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.output)
        assert found
        return int(found[1])

    def ready(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/v1/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def processes(self) -> list[psutil.Process]:
        """Everything that lives on the data folder, but the supervisor."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def one(self, word: str) -> psutil.Process:
        """The oldest of its processes whose command has `word`."""
        return min(
            (process for process in self.processes() if word in " ".join(process.cmdline())),
            key=lambda process: process.create_time(),
        )

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if self.process is not None and process.pid == self.process.pid:
                return False
            told = process.environ().get("FERRY_DATA") == str(self.data)
            names_it = str(self.data) in " ".join(process.cmdline())  # the broker shows its socket, but no environment
            return (told or names_it) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def wait(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        self.process.stdout.close()
        return self.process.wait(20)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()


@pytest.fixture
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="ferry-up-") as folder:
        up = Up(Path(folder))
        yield up
        if up.process is not None and up.process.poll() is None:
            up.process.kill()
            up.wait()
        time.sleep(0.2)
        assert up.processes() == []


def until(what: str, seen: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def refused(*arguments: str, cwd: Path) -> str:
    ended = subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    return ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_greets_serves_and_stops_without_a_trace(up: Up, number: signal.Signals) -> None:
    up.start()

    assert up.ready()
    assert f"here = {up.folder}" in up.output
    assert str(up.data) in up.output
    assert len(up.processes()) >= 4

    assert up.stop(number) == 0
    assert up.processes() == []
    assert not up.ready()


@pytest.mark.slow
def test_a_killed_supervisor_takes_everything_along(up: Up) -> None:
    up.start()
    assert len(up.processes()) >= 4

    up.stop(signal.SIGKILL)

    until("everything is gone", lambda: not up.processes(), seconds=3)


@pytest.mark.slow
def test_what_dies_is_started_again(up: Up) -> None:
    up.start()

    for word in ("valkey-server", "api", "worker work", "model-configs"):
        victim = up.one(word)
        victim.kill()
        until(f"{word} is gone", lambda victim=victim: not victim.is_running())
        until(f"{word} is back", lambda word=word: any(word in " ".join(p.cmdline()) for p in up.processes()))

    until("the service is ready", up.ready)
    up.stop()
    for name in ("broker", "api", "worker-1", "model-configs"):
        assert f"{name} ended (signal 9); starting it again." in up.output


@pytest.mark.slow
def test_an_api_process_that_dies_is_replaced_with_its_neighbours(up: Up) -> None:
    up.start()
    parent = up.one("-m api")
    children = parent.children()
    assert len(children) > 1

    children[-1].kill()

    until("the API ended whole", lambda: not any(process.is_running() for process in (parent, *children)))
    until("the service is ready", up.ready)


@pytest.mark.slow
def test_a_second_up_on_one_data_folder_is_told_of_the_first(up: Up) -> None:
    up.start()

    error = refused("--data", str(up.data), "--port", "0", cwd=up.folder)

    assert f"http://127.0.0.1:{up.port}" in error
    assert "--data" in error
    assert up.ready()


@pytest.mark.slow
def test_up_starts_again_on_the_data_of_a_killed_one(up: Up) -> None:
    up.start()
    up.stop(signal.SIGKILL)
    up.output = ""

    up.start()

    assert up.ready()


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        error = refused("--data", str(tmp_path / "data"), "--port", str(port), cwd=tmp_path)

    assert f"127.0.0.1:{port}" in error
    assert "--port" in error


def test_the_whole_disk_is_no_root_by_default(tmp_path: Path) -> None:
    assert "--root NAME=PATH" in refused("--data", str(tmp_path / "data"), cwd=Path("/"))


def test_a_root_without_a_name_is_a_clear_error(tmp_path: Path) -> None:
    assert "NAME=PATH" in refused("--root", "/data/models", "--data", str(tmp_path), cwd=tmp_path)


def test_a_url_that_is_no_redis_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_BROKER_URL", "amqp://localhost")

    assert "redis+socket" in refused("--data", str(tmp_path), "--port", "0", cwd=tmp_path)
