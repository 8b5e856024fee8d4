"""`python -m api`: the HTTP server."""

import argparse
import sys

from worker.jobs.errors import FerryError

from .app import create_app
from .serving import serve
from .settings import ApiSettings


def main(argv: list[str]) -> int:
    """Serve until stopped; answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8321)
    arguments = parser.parse_args(argv)
    try:
        settings = ApiSettings.from_environment()
        app = create_app(settings)
    except FerryError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return serve(app, arguments.host, arguments.port, processes=settings.processes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
