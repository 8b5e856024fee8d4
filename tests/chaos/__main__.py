"""`python -m tests.chaos`: many jobs of every kind under many faults, and what became of them."""

import argparse
import sys
from collections.abc import Sequence

from .faults import FAULTS
from .mutants import MUTANTS
from .run import Plan, Run


def main(argv: Sequence[str]) -> int:
    """Exit code 1 where anything is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=1800, help="at most, of disturbed work")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--without", action="append", default=[], choices=FAULTS, metavar="FAULT")
    parser.add_argument("--mutant", choices=MUTANTS, help="run code with this fault in it: violations must be found")
    run = Run.prepared(Plan(**vars(parser.parse_args(argv))))
    report = run.go()
    print(report.text())
    if report.violations:
        run.keep(report)
        print(f"logs, the store, faults.txt and jobs.json are kept in {run.folder}")
        return 1
    run.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
