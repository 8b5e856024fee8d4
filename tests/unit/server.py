"""The API as a real server over an in-memory store, for what talks HTTP to it."""

import threading
import time
from pathlib import Path

import uvicorn

from api.app import create_app
from api.settings import ApiSettings
from worker.jobs.memory_store import MemoryStore


class FerryServer:
    """On a port of its own, which it keeps over a restart; its one root is `data`."""

    def __init__(self, store: MemoryStore, root: Path) -> None:
        self._app = create_app(ApiSettings(broker_url="redis://unused", roots={"data": root}), store)
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = uvicorn.Server(uvicorn.Config(self._app, port=self._port, log_level="error", ws="none"))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self._port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
