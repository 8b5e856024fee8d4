"""The connection to a Redis-protocol server: which URLs are taken, and how long a call tries."""

from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

from ..jobs.errors import BadInputError

_RETRIES = 5
_TIMEOUT_SECONDS = 3.0
"""A refused call ends after 1.5 s of retries; a server that hangs is given up after a few timeouts."""


def connect(url: str) -> Redis:
    """A client for a URL in the forms that Celery takes too."""
    return Redis.from_url(  # pyright: ignore[reportUnknownMemberType]  # redis-py leaves its options untyped
        redis_url(url),
        decode_responses=True,
        socket_timeout=_TIMEOUT_SECONDS,
        socket_connect_timeout=_TIMEOUT_SECONDS,
        health_check_interval=30,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), _RETRIES),
        retry_on_error=[ConnectionError, TimeoutError, BusyLoadingError, OSError],
    )


def redis_url(url: str) -> str:
    """Kombu's spelling of a URL, in redis-py's. BadInputError for what Ferry cannot use as a broker."""
    parts = urlsplit(url)
    match parts.scheme:
        case "redis" | "rediss":
            return url
        case "redis+socket" if parts.path.startswith("/"):
            return f"unix://{parts.path}"
        case _:
            raise BadInputError(
                "bad_request",
                "FERRY_BROKER_URL",
                found=f"a URL of the form {parts.scheme}:",
                expected="redis://, rediss:// or redis+socket:///absolute/path, to one server (no cluster)",
                next_step="Correct it, or unset it to use the embedded server of `ferry up`.",
            )
