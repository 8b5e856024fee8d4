"""What the HTTP API tells about jobs, as plain JSON: whatever a later version adds is taken as it comes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
Record = dict[str, Any]


def state_of(record: Record) -> str:
    """`queued`, `running`, ..."""
    return record["state"]["state"]


@dataclass(slots=True)
class Look:
    """Asks again while the API or its store is away."""

    url: str
    patience_seconds: float = 90.0
    _http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self._http = httpx.Client(base_url=self.url, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def job(self, job_id: str) -> Record:
        return self._get(f"/v1/jobs/{job_id}", {})

    def jobs(self) -> Iterator[Record]:
        """All that the service knows, newest first."""
        cursor: str | None = ""
        while cursor is not None:
            page = self._get("/v1/jobs", {"limit": "500"} | ({"cursor": cursor} if cursor else {}))
            yield from page["jobs"]
            cursor = page["next_cursor"]

    def _get(self, path: str, params: dict[str, str]) -> Any:
        deadline = time.monotonic() + self.patience_seconds
        while True:
            try:
                response = self._http.get(path, params=params)
                if response.status_code != 503:
                    response.raise_for_status()
                    return response.json()
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer to GET {path} within {self.patience_seconds:.0f} s")
            time.sleep(0.2)
