"""A limit that processes keep together. Sums of booked time are compared, not clocks."""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.engine.throttle import IoLimit, Throttle, shared_limits


def in_processes(count: int, work: Callable[[], None]) -> None:
    pids: list[int] = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            work()
            os._exit(0)
        pids.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)


def booked_until(file: Path) -> float:
    return struct.unpack("<36sd", file.read_bytes())[1]


def test_processes_share_one_limit(tmp_path: Path) -> None:
    limit = IoLimit(tmp_path / "clock", 1000)

    def work() -> None:
        throttle = Throttle([limit])
        for _ in range(5):
            throttle.wait(10)

    started = time.clock_gettime(time.CLOCK_BOOTTIME)
    in_processes(4, work)

    assert booked_until(limit.file) - started >= 4 * 5 * 10 / 1000
    assert time.clock_gettime(time.CLOCK_BOOTTIME) >= booked_until(limit.file), "all have waited"


def test_what_was_not_used_is_not_saved_up(tmp_path: Path) -> None:
    throttle = Throttle([IoLimit(tmp_path / "clock", 1000)])
    throttle.wait(1)
    time.sleep(0.1)
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    throttle.wait(50)
    assert time.clock_gettime(time.CLOCK_BOOTTIME) - before >= 0.05


def test_the_slowest_of_several_limits_counts(tmp_path: Path) -> None:
    throttle = Throttle([IoLimit(tmp_path / "fast", 10**9), IoLimit(tmp_path / "slow", 1000)])
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    throttle.wait(50)
    assert time.clock_gettime(time.CLOCK_BOOTTIME) - before >= 0.05


@pytest.mark.parametrize("left", [b"", b"torn", struct.pack("<36sd", b"another boot", 1e12)])
def test_what_an_earlier_boot_or_a_torn_write_left_costs_nothing(tmp_path: Path, left: bytes) -> None:
    clock = tmp_path / "clock"
    clock.write_bytes(left)
    Throttle([IoLimit(clock, 10**9)]).wait(1000)
    assert booked_until(clock) < 1e11


def test_a_run_without_a_service_has_a_limit_of_its_own() -> None:
    with shared_limits(1000) as limits:
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        in_processes(2, lambda: Throttle(limits).wait(50))
        assert time.clock_gettime(time.CLOCK_BOOTTIME) - before >= 0.1
    with shared_limits(None) as limits:
        assert limits == ()
