"""The embedded broker: a real server that keeps its data, guards its folder and ends with whoever started it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from worker.dispatch import embedded_broker
from worker.dispatch.embedded_broker import EmbeddedBroker, embedded_url, start_embedded_broker
from worker.jobs.errors import BadInputError
from worker.stores.connection import connect

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def started() -> Iterator[list[EmbeddedBroker]]:
    """Brokers to be ended after the test."""
    brokers: list[EmbeddedBroker] = []
    yield brokers
    for broker in brokers:
        broker.process.kill()
        broker.process.wait()


def test_data_outlives_a_killed_broker(tmp_path: Path, started: list[EmbeddedBroker]) -> None:
    started.append(start_embedded_broker(tmp_path, subprocess.DEVNULL))
    with connect(embedded_url(tmp_path)) as redis:
        for number in range(100):
            redis.set(f"key-{number}", number)
    started[0].process.kill()
    started[0].process.wait()

    started.append(start_embedded_broker(tmp_path, subprocess.DEVNULL))

    with connect(embedded_url(tmp_path)) as redis:
        assert redis.dbsize() == 100


@pytest.mark.parametrize("name", ["x" * 120, "a space, ü and %"])
def test_a_data_folder_may_be_long_or_strange(tmp_path: Path, started: list[EmbeddedBroker], name: str) -> None:
    started.append(start_embedded_broker(tmp_path / name, subprocess.DEVNULL))

    with connect(started[0].url) as redis:
        assert redis.ping()
        redis.set("key", "value")
    assert list((tmp_path / name / "broker").glob("appendonlydir/*.aof"))


def test_one_data_folder_has_one_broker(
    tmp_path: Path, started: list[EmbeddedBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_broker, "_LOCK_SECONDS", 0.2)
    started.append(start_embedded_broker(tmp_path, subprocess.DEVNULL))

    with pytest.raises(BadInputError, match=str(tmp_path)):
        start_embedded_broker(tmp_path, subprocess.DEVNULL)


def test_the_broker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import pathlib, subprocess, sys, time\n"
        "from worker.dispatch.embedded_broker import start_embedded_broker\n"
        "broker = start_embedded_broker(pathlib.Path(sys.argv[1]), subprocess.DEVNULL)\n"
        "print(broker.process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    broker = psutil.Process(int(starter.stdout.readline()))

    starter.kill()
    starter.wait()
    starter.stdout.close()

    broker.wait(5)


def test_strangers_cannot_reach_the_broker(tmp_path: Path, started: list[EmbeddedBroker]) -> None:
    started.append(start_embedded_broker(tmp_path, subprocess.DEVNULL))

    socket = Path(started[0].url.removeprefix("redis+socket://"))

    assert socket.stat().st_mode & 0o077 == 0
    assert socket.parent.stat().st_mode & 0o077 == 0


def test_a_stopped_broker_ends_in_good_order(tmp_path: Path) -> None:
    broker = start_embedded_broker(tmp_path, subprocess.DEVNULL)

    os.kill(broker.process.pid, signal.SIGTERM)

    assert broker.process.wait(5) == 0
