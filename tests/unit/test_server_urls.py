"""What a server's URL means: the same to redis-py as to kombu, and nothing to what Ferry cannot use."""

from typing import Any

import kombu
import pytest

from api.settings import ApiSettings
from worker.dispatch.celery_broker import celery_broker
from worker.jobs.errors import BadInputError
from worker.settings import WorkerSettings
from worker.stores.connection import connect
from worker.stores.server_url import parse_broker

_COMPARED = (
    "host",
    "port",
    "path",
    "db",
    "username",
    "password",
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)


def of_redis(url: str) -> dict[str, Any]:
    return compared(connect(url).connection_pool.connection_kwargs)


def of_kombu(url: str) -> dict[str, Any]:
    broker = celery_broker(url)
    options = dict(broker.transport_options)
    connection = kombu.Connection(broker.url, ssl=dict(broker.use_ssl or {}), transport_options=options)
    # A channel that connects to nothing.
    channel: Any = object.__new__(connection.transport.Channel)
    channel.connection = connection.transport
    return compared(channel._connparams())


def compared(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in _COMPARED if options.get(name) is not None}


@pytest.mark.parametrize(
    ("url", "meaning"),
    [
        ("redis://", {"host": "127.0.0.1", "port": 6379, "db": 0}),
        ("redis://store:7000/3", {"host": "store", "port": 7000, "db": 3}),
        ("redis://[::1]:7000", {"host": "::1", "port": 7000, "db": 0}),
        (
            "redis://us%2Fer:p%40ss%3A%2F%3F%23%3B%25@store",
            {"host": "store", "port": 6379, "db": 0, "username": "us/er", "password": "p@ss:/?#;%"},
        ),
        ("redis://:secret@store", {"host": "store", "port": 6379, "db": 0, "password": "secret"}),
        (
            "rediss://store",
            {"host": "store", "port": 6379, "db": 0, "ssl_cert_reqs": "required", "ssl_check_hostname": True},
        ),
        (
            "rediss://store/1?ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
            {
                "host": "store",
                "port": 6379,
                "db": 1,
                "ssl_ca_certs": "/ca.pem",
                "ssl_cert_reqs": "required",
                "ssl_check_hostname": False,
            },
        ),
        (
            "rediss://store?ssl_cert_reqs=CERT_NONE",
            {"host": "store", "port": 6379, "db": 0, "ssl_cert_reqs": "none", "ssl_check_hostname": False},
        ),
        ("redis+socket:///run/a%20b.sock", {"path": "/run/a b.sock", "db": 0}),
        (
            "redis+socket://user:p%40ss@/run/s?virtual_host=4",
            {"path": "/run/s", "db": 4, "username": "user", "password": "p@ss"},
        ),
    ],
)
def test_redis_py_and_kombu_reach_the_same_server(url: str, meaning: dict[str, Any]) -> None:
    ours = of_redis(url)

    assert {name: str(value) for name, value in ours.items()} == {name: str(value) for name, value in meaning.items()}
    assert {name: str(value) for name, value in of_kombu(url).items()} == {
        name: str(value) for name, value in meaning.items()
    }


SENTINELS = "sentinel://user:p%40ss@one/2?master_name=main&sentinel_password=watch;sentinel://two:7000/2"


def test_sentinels_are_asked_for_the_same_master() -> None:
    pool = connect(SENTINELS).connection_pool
    broker = celery_broker(SENTINELS)

    assert pool.service_name == broker.transport_options["master_name"] == "main"  # pyright: ignore[reportAttributeAccessIssue]
    assert compared(pool.connection_kwargs) == {"db": 2, "username": "user", "password": "p@ss"}
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]  # pyright: ignore[reportAttributeAccessIssue]
    assert [(one["host"], one["port"], one["password"]) for one in asked] == [
        ("one", 26379, "watch"),
        ("two", 7000, "watch"),
    ]
    assert broker.transport_options["sentinel_kwargs"]["password"] == "watch"


def test_each_sentinel_url_carries_the_login_that_kombu_forgets() -> None:
    broker = celery_broker(SENTINELS)
    connection = kombu.Connection(broker.url, transport_options=dict(broker.transport_options))
    connection.maybe_switch_next()

    assert (connection.hostname, connection.port) == ("two", 7000)
    assert (connection.userid, connection.password, connection.virtual_host) == ("user", "p@ss", "2")


def test_rabbitmq_with_tls_has_its_name_checked() -> None:
    broker = celery_broker("amqps://user:p%40ss@rabbit/v%2Fh?ssl_ca_certs=/ca.pem")
    connection = kombu.Connection(broker.url, ssl=dict(broker.use_ssl or {}))

    assert broker.is_rabbit
    assert (connection.userid, connection.password, connection.virtual_host) == ("user", "p@ss", "v/h")
    assert broker.use_ssl == {"cert_reqs": 2, "ca_certs": "/ca.pem", "server_hostname": "rabbit"}


def test_no_password_is_shown() -> None:
    assert "p%40ss" not in repr(celery_broker(SENTINELS))


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("kafka://store", "redis+socket"),
        ("store:6379", "redis+socket"),
        ("redis://store/main", "number of a database"),
        ("redis://store:many", "port number"),
        ("redis://store?timeout=3", "option timeout"),
        ("redis://store?ssl_ca_certs=/ca.pem", "option ssl_ca_certs"),
        ("rediss://store?ssl_cert_reqs=perhaps", "ssl_cert_reqs=required"),
        ("redis+socket://run/s", "absolute path"),
        ("redis://one;redis://two", "one URL"),
        ("sentinel://one;redis://two?master_name=main", "one URL"),
        ("sentinel://one", "master's name"),
        ("amqps://one;amqps://two", "one URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_clear_error(url: str, hint: str) -> None:
    secret = url.replace("://", "://user:hunter2@", 1)

    with pytest.raises(BadInputError, match="FERRY_BROKER_URL") as refused:
        parse_broker(secret, variable="FERRY_BROKER_URL")

    assert hint in str(refused.value)
    assert "hunter2" not in str(refused.value)


RABBIT, REDIS = "amqp://rabbit", "redis://store/1"


@pytest.mark.parametrize(
    ("broker", "store", "expected"),
    [
        ("", "", (None, None)),
        (REDIS, "", (REDIS, None)),
        ("", REDIS, (REDIS, None)),
        (REDIS, "redis://store:6379/1", (REDIS, None)),
        (RABBIT, REDIS, (RABBIT, REDIS)),
    ],
)
def test_the_two_variables_name_one_server_or_two(
    broker: str, store: str, expected: tuple[str | None, str | None]
) -> None:
    environ = {"FERRY_BROKER_URL": broker, "FERRY_STORE_URL": store}

    worker = WorkerSettings.from_environment(environ)

    assert (worker.broker_url, worker.store_url) == expected
    if broker or store:
        api = ApiSettings.from_environment(environ)
        assert (api.broker_url, api.store_url) == expected


@pytest.mark.parametrize(
    ("broker", "store", "hint"),
    [
        (RABBIT, "", "FERRY_STORE_URL: found nothing"),
        (RABBIT, RABBIT, "FERRY_STORE_URL: found a URL of the form amqp"),
        ("", RABBIT, "FERRY_STORE_URL: found a URL of the form amqp"),
        (REDIS, "redis://other/1", "FERRY_STORE_URL: found another server"),
        (REDIS, "redis://store/2", "FERRY_STORE_URL: found another server"),
    ],
)
def test_a_pair_that_cannot_work_is_a_clear_error(broker: str, store: str, hint: str) -> None:
    environ = {"FERRY_BROKER_URL": broker, "FERRY_STORE_URL": store}

    for settings in (WorkerSettings, ApiSettings):
        with pytest.raises(BadInputError, match=hint):
            settings.from_environment(environ)
