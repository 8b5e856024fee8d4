"""The `ferry` command: thin, over the client or over `python -m worker`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point. Errors end in one clear block on stderr and an exit code, never in a traceback."""
    from .commands import app
    from .failure import ending

    with ending(sys.stderr):
        app()
