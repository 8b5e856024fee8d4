"""What a worker reads from its environment, and what it says to nonsense in it."""

from pathlib import Path

import pytest

from worker.jobs.errors import BadInputError
from worker.jobs.roots import Root, entries_of, parse_roots
from worker.settings import WorkerSettings


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = WorkerSettings.from_environment({})

    assert settings.data == Path.home() / ".ferry"
    assert settings.broker_url is None
    assert settings.roots == {}
    assert settings.lease_seconds == 15
    assert settings.io_bytes_per_second is None
    assert settings.copy_processes >= 1


def test_every_variable_is_read() -> None:
    settings = WorkerSettings.from_environment(
        {
            "FERRY_DATA": "/data/ferry",
            "FERRY_BROKER_URL": "redis://broker:6379/1",
            "FERRY_ROOTS": "models=/data/models,out=/data/out?io=500M&owner=trainer&group=ml&mode=0640",
            "FERRY_MODEL_CONFIGS": "/run/warm.sock",
            "FERRY_COPY_PROCESSES": "3",
            "FERRY_IO_BYTES_PER_SECOND": "1000",
            "FERRY_LEASE_SECONDS": "2.5",
            "FERRY_GRACE_SECONDS": "0",
            "FERRY_ALLOW_PICKLE": "1",
        }
    )

    assert settings == WorkerSettings(
        data=Path("/data/ferry"),
        broker_url="redis://broker:6379/1",
        roots={
            "models": Root(path=Path("/data/models")),
            "out": Root(path=Path("/data/out"), io=500_000_000, owner="trainer", group="ml", mode=0o640),
        },
        model_configs=Path("/run/warm.sock"),
        copy_processes=3,
        io_bytes_per_second=1000,
        lease_seconds=2.5,
        grace_seconds=0,
        allow_pickle=True,
    )
    assert settings.locations.allow_pickle


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("FERRY_ROOTS", "/data/models"),
        ("FERRY_ROOTS", "=/data"),
        ("FERRY_ROOTS", "a=/data?io=0"),
        ("FERRY_ROOTS", "a=/data?io=fast"),
        ("FERRY_ROOTS", "a=/data?io=1M&io=2M"),
        ("FERRY_ROOTS", "a=/data?mode=999"),
        ("FERRY_ROOTS", "a=/data?speed=3"),
        ("FERRY_ROOTS", "a=/data?io"),
        ("FERRY_COPY_PROCESSES", "0"),
        ("FERRY_COPY_PROCESSES", "many"),
        ("FERRY_IO_BYTES_PER_SECOND", "-1"),
        ("FERRY_LEASE_SECONDS", "0"),
        ("FERRY_LEASE_SECONDS", "nan"),
        ("FERRY_GRACE_SECONDS", "-1"),
        ("FERRY_GRACE_SECONDS", "soon"),
        ("FERRY_ALLOW_PICKLE", "yes"),
    ],
)
def test_nonsense_is_refused_by_its_name(name: str, text: str) -> None:
    with pytest.raises(BadInputError, match=name) as caught:
        WorkerSettings.from_environment({name: text})

    assert text in caught.value.info.found


def test_roots_can_be_passed_on() -> None:
    roots = parse_roots("a=/data,b=/out?io=2k&owner=u%26v&group=5&mode=0600")

    assert parse_roots(entries_of(roots)) == roots
    assert (roots["b"].io, roots["b"].owner, roots["b"].mode) == (2000, "u&v", 0o600)
