"""A broker's URL as Celery and kombu want it: options in dictionaries beside it, none in the URL."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never
from urllib.parse import quote

from ..stores.connection import sentinel_options
from ..stores.server_url import (
    Login,
    RabbitServers,
    RedisSentinels,
    RedisServer,
    RedisSocket,
    Tls,
    parse_broker,
)

_DAY_SECONDS = 86_400
_CONNECT_SECONDS = 5.0

_REDIS_OPTIONS: Mapping[str, Any] = {
    # Redelivery is the store's business. A visibility shorter than a job would start it twice.
    "visibility_timeout": _DAY_SECONDS,
    "health_check_interval": 5,
    "socket_connect_timeout": _CONNECT_SECONDS,
}

_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


@dataclass(frozen=True, slots=True, kw_only=True)
class CeleryBroker:
    """What `Celery(broker=...)`, `broker_transport_options` and `broker_use_ssl` are given."""

    url: str = field(repr=False)  # It may hold a password.
    transport_options: Mapping[str, Any] = field(repr=False)
    use_ssl: Mapping[str, Any] | None
    is_rabbit: bool
    """Whether it is RabbitMQ: it brings messages unasked, and takes them from a bell."""


def celery_broker(url: str) -> CeleryBroker:
    """The same server as `worker.stores.connection.connect` would use. BadInputError for an unusable URL."""
    server = parse_broker(url, variable="FERRY_BROKER_URL")
    match server:
        case RedisServer():
            address = _url("rediss" if server.tls else "redis", server.login, server.host, server.port, server.database)
            return _redis(address, server.tls)
        case RedisSocket(path=path):
            address = f"redis+socket://{_userinfo(server.login)}{quote(path)}?virtual_host={server.database}"
            return _redis(address, None)
        case RedisSentinels():
            return _sentinels(server)
        case RabbitServers():
            return _rabbit(server)
        case _:
            assert_never(server)


def _redis(url: str, tls: Tls | None, **options: Any) -> CeleryBroker:
    return CeleryBroker(
        url=url,
        transport_options={**_REDIS_OPTIONS, **options},
        use_ssl=tls.redis_options if tls else None,
        is_rabbit=False,
    )


def _sentinels(server: RedisSentinels) -> CeleryBroker:
    urls = [_url("sentinel", server.login, host, port, server.database) for host, port in server.sentinels]
    return _redis(";".join(urls), server.tls, master_name=server.master_name, sentinel_kwargs=sentinel_options(server))


def _rabbit(server: RabbitServers) -> CeleryBroker:
    scheme = "amqps" if server.tls else "amqp"
    virtual_host = quote(server.virtual_host, safe="")
    return CeleryBroker(
        url=";".join(_url(scheme, server.login, host, port, virtual_host) for host, port in server.hosts),
        transport_options={"confirm_publish": True},
        use_ssl=_amqp_tls(server.tls, server.hosts[0][0]) if server.tls else None,
        is_rabbit=True,
    )


def _amqp_tls(tls: Tls, host: str) -> Mapping[str, Any]:
    """In py-amqp's words. It checks the name in a certificate where it is told one."""
    named = {"ca_certs": tls.ca_certs, "certfile": tls.certfile, "keyfile": tls.keyfile}
    name = {"server_hostname": host} if tls.check_hostname else {}
    return {"cert_reqs": _VERIFY[tls.cert_reqs], **{option: path for option, path in named.items() if path}, **name}


def _url(scheme: str, login: Login, host: str, port: int, path: int | str) -> str:
    """Each URL of a list carries the login: kombu forgets that of the first when it goes on to the next."""
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{_userinfo(login)}{name}:{port}/{path}"


def _userinfo(login: Login) -> str:
    if login.user is None and login.password is None:
        return ""
    password = "" if login.password is None else f":{quote(login.password, safe='')}"
    return f"{quote(login.user or '', safe='')}{password}@"
