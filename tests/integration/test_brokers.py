"""The servers that can bring messages and hold jobs, each of them real: Redis with TLS and ACL, Sentinel, RabbitMQ.

A server that is not installed skips its tests; `ops/ci-servers` installs them all.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import amqp
import httpx
import kombu
import psutil
import pytest
from redis import Redis
from redis.exceptions import RedisError

from worker.dispatch import embedded_broker, idle_consumer
from worker.dispatch.app import queue
from worker.dispatch.bell import send
from worker.dispatch.celery_broker import celery_broker
from worker.dispatch.embedded_broker import EmbeddedBroker
from worker.dispatch.idle_consumer import IdleConsumer
from worker.dispatch.tied import PROJECT, tied
from worker.jobs.spec import ImportSpec, JobRequest
from worker.jobs.state import Job, Running
from worker.jobs.store import WakeUp
from worker.stores.connection import ACL_RULES, connect
from worker.stores.redis_store import RedisStore

if TYPE_CHECKING:
    from .conftest import Farm

PASSWORD = "pä:ss/w@rd;#?"
LOGIN = f"ferry:{quote(PASSWORD, safe='')}"
ADMIN_PASSWORD = "admin"
SLOW = 5_000_000
"""Bytes per second: a copy of the random Llama takes about five seconds."""

COMMANDS = {
    "worker": ("worker", "work"),
    "api": ("api", "--port", "0"),
    "up": ("worker", "up", "--port", "0", "--root", "here=/tmp"),
}


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None and not Path(program).exists():
            pytest.skip(f"{program} is not installed: ops/ci-servers installs it")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until_true(what: str, seen: object, *, seconds: float = 30) -> None:
    assert callable(seen)
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@dataclass
class Processes:
    """Servers of one test, killed at its end."""

    folder: Path
    running: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start(self, *command: str | Path, **environment: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"server-{len(self.running)}.log").open("wb") as log:
            process = subprocess.Popen(
                tied(command),
                cwd=PROJECT,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("server-*.log")))


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    for process in processes.running:
        processes.kill(process)


def environment(url: str, folder: Path, **more: str) -> Mapping[str, str]:
    return {
        **os.environ,
        "FERRY_BROKER_URL": url,
        "FERRY_DATA": str(folder / "data"),
        "FERRY_ROOTS": "here=/tmp",
        **more,
    }


def refusal(command: Sequence[str], url: str, folder: Path, **more: str) -> str:
    """What a command that must not start says."""
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=PROJECT,
        env=environment(url, folder, **more),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2, ended.stderr
    assert PASSWORD not in ended.stderr
    assert quote(PASSWORD, safe="") not in ended.stderr
    return ended.stderr


# Redis with TLS and an ACL user


@dataclass(frozen=True)
class Authority:
    """A certificate authority of our own, and a server's certificate from it."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.pem"


def certify(folder: Path) -> Authority:
    needs("openssl")
    folder.mkdir()
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for arguments in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile san",
    ):
        subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)
    return Authority(folder)


@dataclass(frozen=True)
class TlsRedis:
    """A server that listens with TLS alone, and knows the user `ferry`."""

    port: int
    authority: Authority
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return self.url_of(LOGIN)

    def url_of(self, login: str) -> str:
        return f"rediss://{login}@127.0.0.1:{self.port}/3?ssl_ca_certs={self.authority.certificate}"

    @property
    def admin(self) -> Redis:
        return Redis(
            port=self.port,
            username="admin",
            password=ADMIN_PASSWORD,
            ssl=True,
            ssl_ca_certs=str(self.authority.certificate),
            decode_responses=True,
        )


@pytest.fixture
def tls_redis(tmp_path: Path, processes: Processes) -> TlsRedis:
    needs("redis-server")
    authority, port = certify(tmp_path / "tls"), free_port()
    users = f"user default off\nuser admin on >{ADMIN_PASSWORD} ~* &* +@all\nuser ferry on >{PASSWORD} {ACL_RULES}\n"
    (tmp_path / "users.acl").write_text(users)
    files = {"tls-ca-cert-file": "ca.pem", "tls-cert-file": "server.pem", "tls-key-file": "server.key"}
    options = {"port": "0", "tls-port": str(port), "tls-auth-clients": "no", "bind": "127.0.0.1 127.0.0.2"}
    options |= {option: str(authority.folder / name) for option, name in files.items()}
    options |= {"aclfile": str(tmp_path / "users.acl"), "dir": str(tmp_path), "save": ""}
    process = processes.start(
        "redis-server", *(word for name, value in options.items() for word in (f"--{name}", value))
    )
    server = TlsRedis(port, authority, process)
    until_true("the TLS server", lambda: answers(server.admin))
    return server


def answers(client: Redis) -> bool:
    with closing(client):
        try:
            return client.ping()
        except RedisError:
            return False


def test_an_import_runs_over_tls_as_a_user_with_few_rights(farm: "Farm", tls_redis: TlsRedis) -> None:
    there = replace(farm, broker=EmbeddedBroker(url=tls_redis.url, process=tls_redis.process))
    there.start_worker()
    there.submit()

    there.until_state("succeeded")

    with closing(tls_redis.admin) as admin:
        assert admin.acl_log() == [], "a command or a key was refused"
        assert admin.dbsize() == 0, "the URL names another database"
        admin.select(3)
        assert admin.exists("ferry:job:job_1")


def test_the_user_with_few_rights_reaches_no_other_keys(tls_redis: TlsRedis) -> None:
    with connect(tls_redis.url) as redis:
        for refused in (("GET", "other"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("SHUTDOWN",)):
            with pytest.raises(RedisError, match=r"(?i)permission"):
                redis.execute_command(*refused)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_password_is_a_clear_error(command: str, tls_redis: TlsRedis, tmp_path: Path) -> None:
    error = refusal(COMMANDS[command], tls_redis.url_of("ferry:wrong"), tmp_path)

    assert "the login in FERRY_BROKER_URL" in error
    assert "invalid username-password" in error


def test_a_missing_right_is_a_clear_error(tls_redis: TlsRedis, tmp_path: Path) -> None:
    with closing(tls_redis.admin) as admin:
        admin.execute_command("ACL", "SETUSER", "ferry", "-info")

    error = refusal(COMMANDS["worker"], tls_redis.url, tmp_path)

    assert "'info'" in error
    assert ACL_RULES in error


def test_a_certificate_of_a_stranger_is_a_clear_error(tls_redis: TlsRedis, tmp_path: Path) -> None:
    stranger = certify(tmp_path / "stranger")
    url = tls_redis.url.replace(str(tls_redis.authority.certificate), str(stranger.certificate))

    for command in COMMANDS.values():
        error = refusal(command, url, tmp_path)
        assert "the TLS connection" in error
        assert "ssl_ca_certs" in error


def test_the_broker_connection_trusts_no_stranger_either(tls_redis: TlsRedis, tmp_path: Path) -> None:
    stranger = certify(tmp_path / "stranger")
    url = tls_redis.url.replace(str(tls_redis.authority.certificate), str(stranger.certificate))

    assert kombu_reaches(tls_redis.url)
    assert not kombu_reaches(url)


def kombu_reaches(url: str) -> bool:
    broker = celery_broker(url)
    assert broker.use_ssl is not None
    connection = kombu.Connection(
        broker.url, ssl=dict(broker.use_ssl), transport_options=dict(broker.transport_options)
    )
    with connection:
        try:
            connection.connect()
            connection.channel()
        except (RedisError, amqp.AMQPError, OSError):
            return False
    return True


def test_a_certificate_for_another_name_is_a_clear_error(tls_redis: TlsRedis, tmp_path: Path) -> None:
    error = refusal(COMMANDS["worker"], tls_redis.url.replace("127.0.0.1", "127.0.0.2"), tmp_path)

    assert "IP address mismatch" in error


def test_a_missing_certificate_file_is_a_clear_error(tls_redis: TlsRedis, tmp_path: Path) -> None:
    url = tls_redis.url.replace("ca.pem", "missing.pem")

    assert "missing.pem for ssl_ca_certs" in refusal(COMMANDS["api"], url, tmp_path)


# Redis Cluster


def start_cluster_node(processes: Processes, port: int) -> "subprocess.Popen[bytes]":
    binary = embedded_broker._binary()  # pyright: ignore[reportPrivateUsage]
    folder = processes.folder / "cluster"
    folder.mkdir()
    # Its own choice for the second port is 10,000 above the first, which may be no port at all.
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--save", "")
    return processes.start(binary, "--port", str(port), "--dir", folder, *options)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_cluster_is_refused_with_the_reason(command: str, processes: Processes, tmp_path: Path) -> None:
    port = free_port()
    start_cluster_node(processes, port)
    until_true("the cluster node", lambda: answers(Redis(port=port)))

    error = refusal(COMMANDS[command], f"redis://127.0.0.1:{port}/0", tmp_path)

    assert "Redis Cluster" in error
    assert "all keys on the same server" in error


def test_a_cluster_that_comes_up_later_is_refused_then(processes: Processes, tmp_path: Path) -> None:
    port = free_port()
    worker = subprocess.Popen(
        [sys.executable, "-m", "worker", "work"],
        cwd=PROJECT,
        env=environment(f"redis://127.0.0.1:{port}/0", tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(3)
    assert worker.poll() is None, "an absent server is no reason to end"

    start_cluster_node(processes, port)

    _, error = worker.communicate(timeout=60)
    assert "Redis Cluster" in error


# Sentinel


@dataclass
class Watched:
    """A master, its replica, and three sentinels that watch them; all ask for passwords."""

    processes: Processes
    sentinels: Sequence[int]
    servers: "Mapping[int, subprocess.Popen[bytes]]"

    @property
    def url(self) -> str:
        first, *others = (f"127.0.0.1:{port}/2" for port in self.sentinels)
        options = "?master_name=main&sentinel_password=watch"
        return ";".join(
            [f"sentinel://:{quote(PASSWORD, safe='')}@{first}{options}", *(f"sentinel://{o}" for o in others)]
        )

    def master(self) -> int:
        with Redis(port=self.sentinels[0], password="watch", decode_responses=True) as sentinel:
            return int(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])


@pytest.fixture
def watched(processes: Processes, tmp_path: Path) -> Watched:
    binary = embedded_broker._binary()  # pyright: ignore[reportPrivateUsage]
    ports = [free_port() for _ in range(5)]
    master, replica, *sentinels = ports
    common = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--appendonly", "yes", "--bind", "127.0.0.1")
    servers: dict[int, subprocess.Popen[bytes]] = {}
    for port, more in ((master, ()), (replica, ("--replicaof", f"127.0.0.1 {master}"))):
        folder = tmp_path / f"redis-{port}"
        folder.mkdir()
        servers[port] = processes.start(binary, "--port", str(port), "--dir", folder, *common, *more)
        until_true("a server", lambda port=port: answers(Redis(port=port, password=PASSWORD)))
    for port in sentinels:
        config = tmp_path / f"sentinel-{port}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\nrequirepass watch\ndir {tmp_path}\n"
            f"sentinel monitor main 127.0.0.1 {master} 2\nsentinel auth-pass main {PASSWORD}\n"
            "sentinel sentinel-pass watch\nsentinel down-after-milliseconds main 1000\n"
            "sentinel failover-timeout main 5000\n"
        )
        processes.start(binary, config, "--sentinel")
    watched = Watched(processes, sentinels, servers)
    until_true("sentinels that know each other and the replica", lambda: all(map(knows_all, sentinels)))
    return watched


def knows_all(port: int) -> bool:
    with Redis(port=port, password="watch", decode_responses=True) as sentinel:
        try:
            state = sentinel.sentinel_master("main")
        except RedisError:
            return False
        return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1


@pytest.mark.slow
def test_jobs_outlive_the_master_that_accepted_them(farm: "Farm", watched: Watched) -> None:
    master = watched.master()
    there = replace(farm, broker=EmbeddedBroker(url=watched.url, process=watched.servers[master]))
    there.start_worker(bytes_per_second=SLOW)
    there.submit()
    there.until_copying()
    there.submit()
    with connect(watched.url) as redis:
        assert redis.wait(1, 5000) == 1, "the replica knows of both"

    watched.processes.kill(watched.servers[master])

    until_true("another master", lambda: watched.master() != master)
    for number in (1, 2):
        there.until_state("succeeded", f"job_{number}", seconds=90)


@pytest.mark.slow
def test_a_wrong_master_name_is_named(watched: Watched, tmp_path: Path) -> None:
    url = watched.url.replace("master_name=main", "master_name=other")
    worker = subprocess.Popen(
        [sys.executable, "-m", "worker", "work"],
        cwd=PROJECT,
        env=environment(url, tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )

    time.sleep(8)
    worker.send_signal(signal.SIGTERM)
    _, error = worker.communicate(timeout=60)

    assert "No master found for 'other'" in error
    assert quote(PASSWORD, safe="") not in error


# RabbitMQ

_RABBIT = "/usr/lib/rabbitmq/bin/rabbitmq-server"


@dataclass
class Rabbit:
    """A node with ports, files and an epmd of its own. It closes a channel that keeps a message for 3 s."""

    processes: Processes
    folder: Path
    port: int
    tls_port: int
    authority: Authority
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"amqp://{LOGIN}@127.0.0.1:{self.port}/"

    @property
    def tls_url(self) -> str:
        return f"amqps://{LOGIN}@localhost:{self.tls_port}/?ssl_ca_certs={self.authority.certificate}"

    def start(self) -> None:
        self.process = self.processes.start(_RABBIT, **self.environment)
        until_true("RabbitMQ", self.answers, seconds=90)

    def kill(self) -> None:
        assert self.process is not None
        self.processes.kill(self.process)
        self.process = None

    def answers(self) -> bool:
        connection = kombu.Connection(self.url, connect_timeout=1)
        try:
            connection.connect()
            connection.release()
        except (OSError, *connection.connection_errors):
            return False
        return True

    def ready(self, queue: str = "ferry.cpu") -> int:
        """Messages that no worker has."""
        with kombu.Connection(self.url) as connection, connection.channel() as channel:
            return channel.queue_declare(queue, passive=True).message_count

    def logs(self) -> str:
        return self.processes.logs()


@pytest.fixture(scope="module")
def rabbit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rabbit")


@pytest.fixture(scope="module")
def rabbit_node(rabbit_folder: Path) -> Iterator[Rabbit]:
    needs(_RABBIT, "epmd")
    node = configured(rabbit_folder)
    try:
        node.processes.start("epmd", **node.environment)
        node.start()
        yield node
    finally:
        for process in node.processes.running:
            node.processes.kill(process)


def configured(folder: Path) -> Rabbit:
    port, tls_port, between, epmd = (free_port() for _ in range(4))
    authority = certify(folder / "tls")
    files = {"cacertfile": "ca.pem", "certfile": "server.pem", "keyfile": "server.key"}
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\nlisteners.ssl.1 = 127.0.0.1:{tls_port}\n"
        + "".join(f"ssl_options.{option} = {authority.folder / name}\n" for option, name in files.items())
    )
    (folder / "advanced.config").write_text(
        f'[{{rabbit, [{{default_user, <<"ferry">>}}, {{default_pass, <<{",".join(map(str, PASSWORD.encode()))}>>}}, '
        "{channel_tick_interval, 1000}, {consumer_timeout, 3000}]}]."
    )
    (folder / "plugins").write_text("[].")
    environment = {
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"ferry-{port}@localhost",
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(between),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    return Rabbit(Processes(folder), folder, port, tls_port, authority, environment)


@dataclass
class RabbitFarm:
    """Workers on RabbitMQ, their jobs in the farm's own Valkey."""

    farm: "Farm"
    rabbit: Rabbit

    def start_worker(self, **more: str) -> "subprocess.Popen[bytes]":
        url = more.pop("url", self.rabbit.url)
        return self.farm.start_worker(FERRY_BROKER_URL=url, FERRY_STORE_URL=self.farm.broker.url, **more)

    def start_slow_worker(self) -> "subprocess.Popen[bytes]":
        return self.start_worker(FERRY_IO_BYTES_PER_SECOND=str(SLOW))

    def submit(self) -> Job:
        """As the API does: the store must not send a message of its own."""
        self.farm.jobs += 1
        number = self.farm.jobs
        store = RedisStore.from_url(self.farm.broker.url, sends_messages=False)
        spec = ImportSpec(source="here:llama", target=f"here:out-{number}")
        return store.submit(f"job_{number}", JobRequest(spec=spec), target=str(self.farm.target(number)))

    def worker_of(self, number: int) -> str:
        state = self.farm.until_state("running", f"job_{number}").state
        assert isinstance(state, Running)
        return state.worker_id

    def state(self, number: int) -> str:
        return self.farm.store.get(f"job_{number}").state.state

    def until_done(self, *numbers: int, attempts: int = 1) -> None:
        for number in numbers:
            job = self.farm.until_state("succeeded", f"job_{number}", seconds=90)
            assert job.attempts <= attempts, self.farm.logs()


@pytest.fixture
def rabbit(farm: "Farm", rabbit_node: Rabbit) -> Iterator[RabbitFarm]:
    yield RabbitFarm(farm, rabbit_node)
    with kombu.Connection(rabbit_node.url) as connection, connection.channel() as channel, suppress(Exception):
        channel.queue_delete("ferry.cpu")


@pytest.mark.slow
def test_jobs_run_on_rabbitmq(rabbit: RabbitFarm) -> None:
    rabbit.start_worker()
    for _ in range(3):
        rabbit.submit()

    rabbit.until_done(1, 2, 3)

    with connect(rabbit.farm.broker.url) as redis:
        assert not redis.keys("ferry.cpu*"), "no message on the store's server"


@pytest.mark.slow
def test_jobs_run_on_rabbitmq_over_tls(rabbit: RabbitFarm) -> None:
    rabbit.start_worker(url=rabbit.rabbit.tls_url)
    for _ in range(3):
        rabbit.submit()

    rabbit.until_done(1, 2, 3)


@pytest.mark.slow
def test_a_job_may_take_longer_than_rabbitmq_waits_for_an_acknowledgement(rabbit: RabbitFarm) -> None:
    rabbit.start_slow_worker()
    rabbit.submit()

    rabbit.until_done(1)

    assert "PRECONDITION_FAILED" not in rabbit.farm.logs()
    assert "consumer ack timed out" not in rabbit.rabbit.logs()


@pytest.mark.slow
def test_a_busy_slot_holds_no_second_job(rabbit: RabbitFarm) -> None:
    rabbit.start_slow_worker()
    rabbit.submit()
    first = rabbit.worker_of(1)
    rabbit.submit()
    rabbit.submit()
    until_true("both wait in RabbitMQ", lambda: rabbit.rabbit.ready() == 2)
    time.sleep(1)
    assert rabbit.rabbit.ready() == 2, "the busy slot took one"

    rabbit.start_slow_worker()
    second = rabbit.worker_of(2)

    assert rabbit.state(1) == "running", "still busy"
    assert second != first
    assert rabbit.state(3) == "queued"
    rabbit.until_done(1, 2, 3)


@pytest.mark.slow
def test_an_idle_slot_takes_each_job_that_a_busy_one_cannot(rabbit: RabbitFarm) -> None:
    for _ in range(2):
        rabbit.start_slow_worker()
    for number in (1, 3, 5):
        rabbit.submit()
        busy = rabbit.worker_of(number)
        rabbit.submit()
        assert rabbit.worker_of(number + 1) != busy
        assert rabbit.state(number) == "running"
        rabbit.until_done(number, number + 1)


@pytest.mark.slow
def test_two_queues_bring_one_message(rabbit_node: Rabbit, monkeypatch: pytest.MonkeyPatch) -> None:
    """As RabbitMQ 4 counts: one message for each queue, not one for all."""
    busy: set[str] = set()
    monkeypatch.setattr(idle_consumer, "_state", SimpleNamespace(reserved_requests=busy))
    names = ("ferry.gpu", "ferry.gpu.2")
    with kombu.Connection(rabbit_node.url) as connection, kombu.Producer(connection) as producer:
        for name in names:
            send(producer, WakeUp(job_id=name, queue=name, priority=5))
        channel = connection.channel()
        channel.basic_qos(0, 1, False)

        def take(message: kombu.Message) -> None:
            busy.add(message.decode()[0][0])
            message.ack()

        consumer = IdleConsumer(channel, [queue(name) for name in names], on_message=take)
        consumer.consume()
        drain(connection)

        (taken,) = busy
        (other,) = set(names) - busy
        assert (rabbit_node.ready(taken), rabbit_node.ready(other)) == (0, 1)
        consumer.consume()
        drain(connection)
        assert rabbit_node.ready(other) == 1, "it listens although it is busy"
        busy.clear()
        consumer.consume()
        drain(connection)
        assert busy == {other}


def drain(connection: kombu.Connection) -> None:
    with suppress(TimeoutError):
        while True:
            connection.drain_events(timeout=1)


@pytest.mark.slow
def test_the_broker_connection_to_rabbitmq_trusts_no_stranger(rabbit_node: Rabbit, tmp_path: Path) -> None:
    stranger = certify(tmp_path / "stranger")
    untrusted = rabbit_node.tls_url.replace(str(rabbit_node.authority.certificate), str(stranger.certificate))

    assert kombu_reaches(rabbit_node.tls_url)
    assert not kombu_reaches(untrusted)
    assert kombu_reaches(rabbit_node.tls_url.replace("localhost", "127.0.0.1"))
    assert not kombu_reaches(rabbit_node.tls_url.replace("localhost", "127.0.0.2"))


@pytest.mark.slow
def test_a_whole_service_runs_on_rabbitmq(rabbit: RabbitFarm, processes: Processes, tmp_path: Path) -> None:
    root, url = rabbit.farm.root, f"http://127.0.0.1:{free_port()}"
    settings = environment(
        rabbit.rabbit.url, tmp_path, FERRY_STORE_URL=rabbit.farm.broker.url, FERRY_ROOTS=f"here={root}"
    )
    up = (sys.executable, "-m", "worker", "up", "--port", url.rsplit(":", 1)[1])
    process = processes.start(*up, **settings)
    until_true("the service", lambda: get(f"{url}/v1/health/ready") is not None, seconds=60)

    spec = {"spec": {"kind": "import", "source": "here:llama", "target": "here:out"}}
    accepted = httpx.post(f"{url}/v1/jobs", json=spec).json()

    until_true(
        "the job's end", lambda: get(f"{url}/v1/jobs/{accepted['id']}")["state"]["state"] == "succeeded", seconds=60
    )
    assert (root / "out" / "manifest.json").exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def get(url: str) -> Any:
    with suppress(httpx.HTTPError):
        answer = httpx.get(url)
        if answer.status_code == 200:
            return answer.json()
    return None


@pytest.mark.slow
def test_urgent_messages_come_first(rabbit: RabbitFarm) -> None:
    connection = kombu.Connection(rabbit.rabbit.url, transport_options={"confirm_publish": True})
    with connection, kombu.Producer(connection) as producer:
        for job_id, priority in (("low", 1), ("normal", 5), ("high", 9)):
            send(producer, WakeUp(job_id=job_id, queue="ferry.cpu", priority=priority))

    with kombu.Connection(rabbit.rabbit.url) as connection, connection.channel() as channel:
        came = [json.loads(channel.basic_get("ferry.cpu", no_ack=True).body)[0][0] for _ in range(3)]

    assert came == ["high", "normal", "low"]


@pytest.mark.slow
def test_rabbitmq_killed_and_started_again_loses_nothing(rabbit: RabbitFarm) -> None:
    rabbit.start_slow_worker()
    rabbit.submit()
    rabbit.worker_of(1)
    rabbit.submit()
    until_true("the second waits in RabbitMQ", lambda: rabbit.rabbit.ready() == 1)

    rabbit.rabbit.kill()
    rabbit.submit()
    rabbit.until_done(1)
    time.sleep(1)
    assert rabbit.state(2) == rabbit.state(3) == "queued"
    rabbit.rabbit.start()

    rabbit.until_done(1, 2, 3)


@pytest.mark.slow
def test_a_worker_that_is_busy_while_rabbitmq_restarts_takes_no_second_job(rabbit: RabbitFarm) -> None:
    rabbit.start_worker(FERRY_IO_BYTES_PER_SECOND=str(SLOW // 4))
    rabbit.submit()
    rabbit.worker_of(1)

    rabbit.rabbit.kill()
    rabbit.rabbit.start()
    rabbit.submit()

    # RabbitMQ writes acknowledgements down late: after a crash it may bring an old message again.
    until_true("the second waits in RabbitMQ", lambda: rabbit.rabbit.ready() >= 1, seconds=20)
    time.sleep(3)
    rabbit.start_worker()

    rabbit.until_done(2)
    assert rabbit.state(1) == "running", "the busy slot held the second job"
    rabbit.until_done(1)


@pytest.mark.slow
def test_a_message_that_was_lost_is_sent_again(rabbit: RabbitFarm) -> None:
    rabbit.start_slow_worker()
    rabbit.submit()
    rabbit.worker_of(1)
    rabbit.submit()
    until_true("the second waits in RabbitMQ", lambda: rabbit.rabbit.ready() == 1)

    with kombu.Connection(rabbit.rabbit.url) as connection, connection.channel() as channel:
        channel.queue_purge("ferry.cpu")

    rabbit.until_done(1, 2)


@pytest.mark.slow
def test_a_killed_worker_loses_no_job(rabbit: RabbitFarm) -> None:
    worker = rabbit.start_slow_worker()
    rabbit.submit()
    rabbit.worker_of(1)

    for process in [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    rabbit.start_worker()

    rabbit.until_done(1, attempts=2)


@pytest.mark.slow
def test_a_worker_that_is_stopped_returns_its_job(rabbit: RabbitFarm) -> None:
    worker = rabbit.start_slow_worker()
    rabbit.submit()
    rabbit.worker_of(1)

    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    rabbit.start_worker()

    rabbit.until_done(1, attempts=2)


@pytest.mark.parametrize("command", COMMANDS)
def test_rabbitmq_without_a_store_is_a_clear_error(command: str, tmp_path: Path) -> None:
    error = refusal(COMMANDS[command], "amqp://localhost", tmp_path)

    assert "FERRY_STORE_URL" in error
    assert "cannot hold records" in error
