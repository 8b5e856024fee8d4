"""The connection to a Redis-protocol server: by TCP, TLS, a unix socket or Sentinel; how long a call tries."""

from typing import Any, assert_never

from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

from .server_url import Login, RedisSentinels, RedisServer, RedisSocket, StoreServer, Tls, parse_store

_RETRIES = 5
_TIMEOUT_SECONDS = 3.0
"""A refused call ends after 1.5 s of retries; a server that hangs is given up after a few timeouts."""

ACL_RULES = (
    "~ferry* ~unacked* ~_kombu.* resetchannels "
    "-@all +@read +@write +@connection +@transaction -@dangerous +eval +evalsha +script|load +time +info"
)
"""All that Ferry's user of a Redis server needs (`ACL SETUSER ferry on >password` and these): its own keys, and those
of Celery's transport (messages that are being worked on, and its table of queues)."""


def connect(url: str, *, variable: str = "FERRY_BROKER_URL") -> Redis:
    """A client for a URL in the forms of `server_url`; the variable is what an error names."""
    return connect_to(parse_store(url, variable=variable))


def connect_to(server: StoreServer) -> Redis:
    """A client for a server. It connects with the first call."""
    match server:
        case RedisServer(host=host, port=port):
            return Redis(host=host, port=port, **_options(server, server.tls))
        case RedisSocket(path=path):
            return Redis(unix_socket_path=path, **_options(server, None))
        case RedisSentinels():
            return _master(server)
        case _:
            assert_never(server)


def sentinel_options(server: RedisSentinels) -> dict[str, Any]:
    """How to reach the sentinels themselves: one that does not answer is passed over, since others may."""
    return {**_timeouts(), **_login(server.sentinel_login), **_tls(server.tls), "retry": Retry(NoBackoff(), 0)}


def _master(server: RedisSentinels) -> Redis:
    sentinel = Sentinel(list(server.sentinels), sentinel_kwargs=sentinel_options(server))
    # redis-py leaves its options untyped.
    return sentinel.master_for(server.master_name, **_options(server, server.tls))  # pyright: ignore[reportUnknownMemberType]


def _options(server: StoreServer, tls: Tls | None) -> dict[str, Any]:
    return {
        **_timeouts(),
        **_login(server.login),
        **_tls(tls),
        "db": server.database,
        "decode_responses": True,
        "health_check_interval": 30,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), _RETRIES),
        "retry_on_error": [ConnectionError, TimeoutError, BusyLoadingError, OSError],
    }


def _timeouts() -> dict[str, Any]:
    return {"socket_timeout": _TIMEOUT_SECONDS, "socket_connect_timeout": _TIMEOUT_SECONDS}


def _login(login: Login) -> dict[str, Any]:
    return {"username": login.user, "password": login.password}


def _tls(tls: Tls | None) -> dict[str, Any]:
    return {"ssl": True, **tls.redis_options} if tls else {}
