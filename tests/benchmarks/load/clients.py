"""Processes that submit as fast as they are answered, and the time that each request took."""

import json
import multiprocessing
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from redis import Redis

Send = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Leg:
    """One way to submit, measured."""

    per_second: float
    p50_ms: float
    p99_ms: float


def measure(connect: Callable[..., Send], *given: object, clients: int, requests: int) -> Leg:
    """All clients together, from the first request to the last answer."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(clients)
    answers: Any = context.Queue()
    processes = [context.Process(target=_live, args=(connect, given, requests, start, answers)) for _ in range(clients)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    seconds = max(end for _, end, _ in found) - min(begin for begin, _, _ in found)
    times = sorted(taken for _, _, many in found for taken in many)
    cuts = quantiles(times, n=100)
    return Leg(per_second=len(times) / seconds, p50_ms=cuts[49] * 1000, p99_ms=cuts[98] * 1000)


def _live(connect: Callable[..., Send], given: tuple[object, ...], requests: int, start: Any, answers: Any) -> None:
    send = connect(*given)
    send()  # connections are made
    start.wait()
    begin = time.monotonic()
    times: list[float] = []
    for _ in range(requests):
        before = time.monotonic()
        send()
        times.append(time.monotonic() - before)
    answers.put((begin, time.monotonic(), times))


def ferry(port: int) -> Send:
    """A job over HTTP, on a connection that stays; as light a client as can be, to measure the server."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    body = json.dumps({"spec": {"kind": "config", "source": "bench:model"}}).encode()
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body

    def send() -> None:
        connection.sendall(request)
        answer = connection.recv(2**16)
        if not answer.startswith(b"HTTP/1.1 202"):
            raise RuntimeError(answer.decode())
        head, _, rest = answer.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(rest) < length:
            rest += connection.recv(2**16)

    return send


def celery(url: str) -> Send:
    """`delay` of a task with one word, as Celery comes."""
    from celery import Celery

    app: Any = Celery("bare", broker=f"redis+socket://{url}", set_as_current=False)
    app.conf.update(task_ignore_result=True)

    @app.task(name="bare.run")
    def run(job_id: str) -> None: ...

    return lambda: run.delay("job_0123456789abcdef0123456789abcdef")


def lpush(path: str) -> Send:
    """One LPUSH of as many bytes as Celery's message has."""
    client, message = Redis(unix_socket_path=path), b"x" * 800
    return lambda: client.lpush("bare.lpush", message)
