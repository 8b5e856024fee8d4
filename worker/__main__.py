"""`python -m worker ...`: what the `ferry` command starts. Each subcommand imports only what it needs."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Run one subcommand; answers the exit code."""
    match argv[:1]:
        case ["up"]:
            from .dispatch import up

            return up.main(argv[1:])
        case ["work"]:
            from .dispatch import work

            return work.main(argv[1:])
        case ["model-config"]:
            from .handlers.model_configs import answer, import_upstream
            from .lifeline import die_with_parent

            die_with_parent(int(argv[1]))
            import_upstream()
            sys.stdout.buffer.write(answer(sys.stdin.buffer.read()))
            return 0
        case ["logits"]:
            from .lifeline import die_with_parent
            from .verification.logits import serve

            die_with_parent(int(argv[1]))
            serve(sys.stdin.read())
            return 0
        case ["load-rank"]:
            from .lifeline import die_with_parent
            from .verification.loading import serve

            die_with_parent(int(argv[1]))
            serve(sys.stdin.read())
            return 0
        case ["model-configs"]:
            from .handlers.model_configs import serve

            serve(Path(argv[1]))
            return 0
        case _:
            return _local(argv)


def _local(argv: list[str]) -> int:
    from . import local
    from .engine.processes import CopyOptions
    from .engine.throttle import shared_limits
    from .jobs.locations import LocalPaths

    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("families")
    commands.add_parser("explain").add_argument("source")
    for name in ("run", "plan"):
        command = commands.add_parser(name)
        command.add_argument("spec")
        command.add_argument("--copy-processes", type=int, default=1)
        command.add_argument("--io-bytes-per-second", type=int)
        command.add_argument("--allow-pickle", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.command == "families":
        return local.list_families()
    if arguments.command == "explain":
        return local.explain_here(arguments.source)
    locations = LocalPaths(allow_pickle=arguments.allow_pickle)
    if arguments.command == "plan":
        return local.plan_here(arguments.spec, CopyOptions(processes=arguments.copy_processes), locations)
    with shared_limits(arguments.io_bytes_per_second) as limits:
        options = CopyOptions(processes=arguments.copy_processes, limits=limits)
        return local.run_here(arguments.spec, options, locations)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
