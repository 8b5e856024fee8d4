"""`python -m tests.benchmarks.load`: jobs accepted per second, and what a long history costs."""

import argparse
import os
import tempfile
from pathlib import Path

from .history import print_history
from .submit_rate import print_submit_rates


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.load", description=__doc__)
    parser.add_argument("--clients", type=int, default=4, help="processes that submit, each one request after another")
    parser.add_argument("--requests", type=int, default=1000, help="of each client, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=10_000, help="in the history")
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="ferry-load-") as folder:
        print_submit_rates(Path(folder), clients=given.clients, requests=given.requests, rounds=given.rounds)
        print_history(Path(folder), jobs=given.jobs, clients=given.clients)


main()
