"""What a process checks about the store's server before it starts to work."""

import logging
import os
import signal
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from ..jobs.errors import BadInputError, UnavailableError
from .connection import ACL_RULES, connect_to
from .server_url import RedisSocket, StoreServer, parse_store
from .servers import Servers

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0


def check_server(servers: Servers) -> None:
    """Refuse a store's server that will never do: BadInputError for a cluster, and where login or TLS fail.

    One that cannot be reached now is no error, since it may come back. It is checked as soon as it answers; if it is
    refused then, this process is asked to stop, and whoever starts it anew is told why.
    """
    variable = servers.store_variable
    server = parse_store(servers.store_url, variable=variable)
    try:
        check_now(server, variable)
    except UnavailableError as error:
        log.warning("store_unreachable_at_start error=%s", error)
        threading.Thread(target=_check_later, args=(server, variable), name="server-check", daemon=True).start()


def check_now(server: StoreServer, variable: str) -> None:
    """BadInputError as above; UnavailableError where it cannot be reached."""
    _check_files({} if isinstance(server, RedisSocket) or server.tls is None else server.tls.files, variable)
    with connect_to(server) as redis:
        try:
            refuse_cluster(redis, variable)
        except (AuthenticationError, NoPermissionError) as error:
            raise _not_let_in(error, variable) from error
        except (RedisError, OSError) as error:
            if refused := _certificate_error(error):
                raise _not_trusted(refused, variable) from error
            raise _unreachable(error) from error


def refuse_cluster(redis: Redis, variable: str = "FERRY_BROKER_URL") -> None:
    """BadInputError for a node of a Redis Cluster."""
    # redis-py leaves the arguments of its commands untyped.
    answer: Mapping[str, object] = redis.info("cluster")  # pyright: ignore[reportUnknownMemberType, reportAssignmentType]
    if answer.get("cluster_enabled"):
        raise BadInputError(
            "bad_request",
            variable,
            found="a node of a Redis Cluster",
            expected="one server, which Sentinel may watch: Celery's transport, and the scripts that change a job, need"
            " all keys on the same server",
            next_step="Name a server that runs without cluster-enabled, or its sentinels.",
        )


def _check_later(server: StoreServer, variable: str) -> None:
    while True:
        time.sleep(_AGAIN_SECONDS)
        try:
            return check_now(server, variable)
        except UnavailableError:
            continue
        except BadInputError as error:
            log.critical("server_refused error=%s", error)
            return os.kill(os.getpid(), signal.SIGTERM)


def _check_files(files: Mapping[str, str], variable: str) -> None:
    for option, path in files.items():
        if not os.access(path, os.R_OK) or not Path(path).is_file():
            raise BadInputError(
                "missing_file",
                variable,
                found=f"no readable file {path} for {option}",
                expected="a file in PEM form",
                next_step="Correct the path, or the file's permissions.",
            )


def _certificate_error(error: BaseException) -> ssl.SSLError | None:
    """The refusal behind an error: redis-py wraps it, more than once with Sentinel."""
    return next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _not_let_in(error: RedisError, variable: str) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"the login in {variable}",
        found=str(error),
        expected="a user and a password that the server accepts, with the rights that Ferry needs",
        next_step=f"Correct it (percent-encode special characters), or give the user these rights: {ACL_RULES}",
    )


def _not_trusted(error: ssl.SSLError, variable: str) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"the TLS connection to the server of {variable}",
        found=getattr(error, "verify_message", "") or error.reason or str(error),
        expected="a certificate for the host's name, signed by an authority that is trusted here",
        next_step="Name the authority's certificate: rediss://...?ssl_ca_certs=/path/to/ca.pem",
    )


def _unreachable(error: Exception) -> UnavailableError:
    return UnavailableError(
        "store_unavailable",
        "the job store",
        found=str(error) or type(error).__name__,
        expected="an answer from the Redis server",
        next_step="Check that the server runs and can be reached from here.",
    )
