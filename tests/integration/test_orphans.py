"""Processes whose parents were all killed at once: found by their mark, and ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from worker.dispatch.attempt import ATTEMPT_OF
from worker.dispatch.birth import born
from worker.dispatch.orphans import end_orphans

_START = """
import os, subprocess, sys, time
from worker.dispatch.attempt import start_attempt

def work(telling):
    # What a library of a later kind may do: a program in a session of its own, untied.
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open(sys.argv[1] + ".new", "w").write(str(program.pid))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(600)

start_attempt(work)
time.sleep(600)
"""


def test_a_program_that_lost_all_its_parents_at_once_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    pool = subprocess.Popen([sys.executable, "-c", _START, str(note)], cwd=Path(__file__).parents[2])
    while not note.exists():
        time.sleep(0.01)
    program = psutil.Process(int(note.read_text()))

    end_orphans()
    assert program.is_running(), "its worker lives"

    attempt = program.parent()
    assert attempt is not None
    for process in (pool, attempt):
        os.kill(process.pid, signal.SIGSTOP)
    for process in (pool, attempt):
        os.kill(process.pid, signal.SIGKILL)
    pool.wait()
    assert program.is_running(), "nothing ties it"

    end_orphans()
    program.wait(5)


def test_processes_without_the_mark_or_with_a_strangers_are_left_alone() -> None:
    strange = {"": "", "unmarked": "", "stranger": "1-4194300-1", "ours": str(born(os.getpid()))}
    sleepers = [
        subprocess.Popen(["sleep", "60"], env={**os.environ, **({ATTEMPT_OF: mark} if mark else {})})
        for mark in strange.values()
    ]
    try:
        end_orphans()
        assert [sleeper.poll() for sleeper in sleepers] == [None] * len(sleepers)
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
