"""The URL of a broker or a job store, taken apart: one spelling for what redis-py, kombu and py-amqp spell differently.

redis://user:password@host:6379/0
rediss://user:password@host:6379/0?ssl_ca_certs=/path/ca.pem
redis+socket://user:password@/path/to.sock?virtual_host=0
sentinel://user:password@host:26379/0;sentinel://host2:26379/0?master_name=main&sentinel_password=...
amqp://user:password@host:5672/virtual-host and amqps://... (a broker only)

User and password are percent-encoded. Options may stand on any URL of a list, user, password and database on the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ..jobs.errors import BadInputError

Verified = Literal["required", "optional", "none"]

_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS = {*_TLS_FILES, "ssl_cert_reqs", "ssl_check_hostname"}
_SENTINEL = {"master_name", "sentinel_username", "sentinel_password"}
STORE_FORMS = "redis://, rediss://, redis+socket:///absolute/path or sentinel://host:26379/0?master_name=..."


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a server asks for; None: nothing. `user` is an ACL user of Redis, or one of RabbitMQ."""

    user: str | None = None
    password: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a server proves who it is, and we who we are. A certificate is verified unless the URL says otherwise."""

    ca_certs: str | None
    certfile: str | None
    keyfile: str | None
    cert_reqs: Verified
    check_hostname: bool

    @property
    def files(self) -> Mapping[str, str]:
        """The files named, by option."""
        named = zip(_TLS_FILES, (self.ca_certs, self.certfile, self.keyfile), strict=True)
        return {option: path for option, path in named if path}

    @property
    def redis_options(self) -> dict[str, object]:
        """In redis-py's words, which kombu uses too."""
        return {**self.files, "ssl_cert_reqs": self.cert_reqs, "ssl_check_hostname": self.check_hostname}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    """One Redis-protocol server."""

    host: str
    port: int
    database: int
    login: Login
    tls: Tls | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSocket:
    """One on this machine."""

    path: str
    database: int
    login: Login


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSentinels:
    """Sentinels that know which server is the master. With TLS, they and the servers speak it."""

    sentinels: Sequence[tuple[str, int]]
    master_name: str
    database: int
    login: Login
    """The master's."""
    sentinel_login: Login
    tls: Tls | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitServers:
    """RabbitMQ: one server, or the nodes of a cluster."""

    hosts: Sequence[tuple[str, int]]
    virtual_host: str
    login: Login
    tls: Tls | None


StoreServer = RedisServer | RedisSocket | RedisSentinels
BrokerServer = StoreServer | RabbitServers


def parse_store(url: str, *, variable: str) -> StoreServer:
    """BadInputError for what cannot hold jobs; no error repeats the URL, which may hold a password."""
    server = parse_broker(url, variable=variable)
    if isinstance(server, RabbitServers):
        raise _wrong(variable, "a URL of the form amqp:", f"a Redis-protocol server: {STORE_FORMS}")
    return server


def parse_broker(url: str, *, variable: str) -> BrokerServer:
    """BadInputError for what Ferry cannot use, naming the environment variable that the URL came in."""
    parts = [urlsplit(part) for part in url.split(";")]
    first = parts[0]
    if {part.scheme for part in parts} != {first.scheme} or (len(parts) > 1 and first.scheme in _SINGLE):
        raise _wrong(variable, f"{len(parts)} URLs", "one URL, or several of sentinel: or of amqp:")
    try:
        match first.scheme:
            case "redis" | "rediss":
                return _redis(first, _options(parts, set() if first.scheme == "redis" else _TLS))
            case "redis+socket":
                return _socket(first, _options(parts, {"virtual_host"}))
            case "sentinel":
                return _sentinels(parts, _options(parts, _TLS | _SENTINEL))
            case "amqp" | "amqps":
                return _rabbit(parts, _options(parts, set() if first.scheme == "amqp" else _TLS))
            case scheme:
                raise ValueError(
                    f"{STORE_FORMS}, to one server (no cluster); as a broker also amqp:// or amqps://", scheme
                )
    except ValueError as error:
        expected, *found = map(str, error.args)
        raise _wrong(variable, f"a URL of the form {first.scheme}:", expected, *found) from None


_SINGLE = {"redis", "rediss", "redis+socket", "amqps"}


def _redis(url: SplitResult, options: Mapping[str, str]) -> RedisServer:
    tls = _tls(options) if url.scheme == "rediss" else None
    host, port = _address(url, 6379)
    return RedisServer(host=host, port=port, database=_database(url.path), login=_login(url), tls=tls)


def _socket(url: SplitResult, options: Mapping[str, str]) -> RedisSocket:
    if url.hostname or not url.path.startswith("/"):
        raise ValueError("an absolute path: redis+socket:///path/to.sock")
    return RedisSocket(path=unquote(url.path), database=_database(options.get("virtual_host", "")), login=_login(url))


def _sentinels(urls: Sequence[SplitResult], options: Mapping[str, str]) -> RedisSentinels:
    if not options.get("master_name"):
        raise ValueError("the master's name: sentinel://host:26379/0?master_name=...")
    return RedisSentinels(
        sentinels=[_address(url, 26379) for url in urls],
        master_name=options["master_name"],
        database=_database(urls[0].path),
        login=_login(urls[0]),
        sentinel_login=Login(user=options.get("sentinel_username"), password=options.get("sentinel_password")),
        tls=_tls(options) if any(option in _TLS for option in options) else None,
    )


def _rabbit(urls: Sequence[SplitResult], options: Mapping[str, str]) -> RabbitServers:
    secure = urls[0].scheme == "amqps"
    return RabbitServers(
        hosts=[_address(url, 5671 if secure else 5672) for url in urls],
        virtual_host=unquote(urls[0].path[1:]) or "/",
        login=_login(urls[0]),
        tls=_tls(options) if secure else None,
    )


def _options(urls: Sequence[SplitResult], known: set[str]) -> Mapping[str, str]:
    options = dict(pair for url in urls for pair in parse_qsl(url.query, keep_blank_values=True))
    for option in options:
        if option not in known:
            raise ValueError(f"options among: {', '.join(sorted(known)) or 'none'}", f"option {option}")
    return options


def _tls(options: Mapping[str, str]) -> Tls:
    verified = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if verified != "required" and verified != "optional" and verified != "none":
        raise ValueError("ssl_cert_reqs=required, optional or none", f"ssl_cert_reqs={verified}")
    return Tls(
        ca_certs=options.get("ssl_ca_certs"),
        certfile=options.get("ssl_certfile"),
        keyfile=options.get("ssl_keyfile"),
        cert_reqs=verified,
        check_hostname=verified == "required" and options.get("ssl_check_hostname", "true").lower() != "false",
    )


def _address(url: SplitResult, port: int) -> tuple[str, int]:
    try:
        return url.hostname or "127.0.0.1", url.port or port
    except ValueError:
        raise ValueError("a port number after the host", "none that can be read") from None


def _login(url: SplitResult) -> Login:
    return Login(
        user=unquote(url.username) if url.username else None, password=unquote(url.password) if url.password else None
    )


def _database(text: str) -> int:
    number = text.removeprefix("/")
    if number and not number.isdecimal():
        raise ValueError("the number of a database, such as 0", repr(number))
    return int(number or 0)


def _wrong(variable: str, form: str, expected: str, found: str | None = None) -> BadInputError:
    return BadInputError(
        "bad_request",
        variable,
        found=f"{found} in {form}" if found and found not in form else form,
        expected=expected,
        next_step="Correct it; without it, `ferry up` starts a server of its own.",
    )
