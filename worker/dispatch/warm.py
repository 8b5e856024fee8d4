"""The warm process beside a worker that has Megatron's config classes loaded; restarted when it dies."""

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from .sockets import make_private
from .tied import PROJECT, tied

log = logging.getLogger(__name__)

_RESTART_SECONDS = 1.0


def keep_warm(socket: Path) -> None:
    """Keep `python -m worker model-configs SOCKET` running for as long as this process lives."""
    make_private(socket.parent)
    threading.Thread(target=_restart_forever, args=(socket,), name="warm", daemon=True).start()


def _restart_forever(socket: Path) -> NoReturn:
    # The kernel ties a child to the thread that started it; this one never ends before its process.
    command = tied(["nice", sys.executable, "-m", "worker", "model-configs", socket])
    while True:
        with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, start_new_session=True) as process:
            code = process.wait()
        log.error("warm_process_ended exit_code=%d", code)
        time.sleep(_RESTART_SECONDS)
