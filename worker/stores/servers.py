"""Which servers a process was told to use: one that holds the jobs, and one that brings the messages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from ..jobs.errors import BadInputError
from .server_url import STORE_FORMS, RabbitServers, parse_broker, parse_store

BROKER, STORE = "FERRY_BROKER_URL", "FERRY_STORE_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Two URLs, which are the same unless RabbitMQ brings the messages."""

    broker_url: str
    store_url: str

    @classmethod
    def of(cls, broker_url: str, store_url: str | None) -> Self:
        """Without a store's URL, the broker holds the jobs too."""
        return cls(broker_url=broker_url, store_url=store_url or broker_url)

    @property
    def store_variable(self) -> str:
        """Where the store's URL came from."""
        return BROKER if self.store_sends_messages else STORE

    @property
    def store_sends_messages(self) -> bool:
        """Whether the store's scripts send the messages; other brokers' are sent by the workers' bells."""
        return self.broker_url == self.store_url


def read_servers(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The broker's URL, and the store's where it is another server; None where none is set.

    BadInputError for what cannot work, naming the variable.
    """
    broker_url, store_url = environ.get(BROKER) or None, environ.get(STORE) or None
    store = parse_store(store_url, variable=STORE) if store_url else None
    broker = parse_broker(broker_url, variable=BROKER) if broker_url else store
    if isinstance(broker, RabbitServers):
        if store is None:
            raise _no_store()
        return broker_url, store_url
    if store is not None and broker != store:
        raise _two_stores()
    return broker_url or store_url, None


def _no_store() -> BadInputError:
    return BadInputError(
        "bad_request",
        STORE,
        found=f"nothing, beside a {BROKER} of RabbitMQ",
        expected=f"the Redis server that holds the jobs: {STORE_FORMS}",
        next_step="Set it: RabbitMQ brings messages to workers, but cannot hold records.",
    )


def _two_stores() -> BadInputError:
    return BadInputError(
        "bad_request",
        STORE,
        found=f"another server than {BROKER} names",
        expected="the same: a Redis broker holds the jobs too, so that a job and its message are written at once",
        next_step=f"Unset {STORE}, or let {BROKER} name RabbitMQ.",
    )
