"""What the families' tests share: random models, our jobs on them, and Megatron as the judge."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.families.case import Case
from tests.families.proof_record import OPTION, ProofRecord
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks


def pytest_configure(config: pytest.Config) -> None:
    """Record what is proved, where that is asked for."""
    if config.getoption(OPTION, default=False):
        config.pluginmanager.register(ProofRecord())


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Random models and our jobs on them."""
    folder = tmp_path_factory.mktemp("families")
    socket = folder / "model-configs"
    with (folder / "log").open("wb") as log:
        warm = subprocess.Popen([sys.executable, "-m", "worker", "model-configs", str(socket)], stderr=log)
    try:
        yield Workshop(folder, socket)
    finally:
        warm.kill()
        warm.wait()


@pytest.fixture(scope="session")
def megatron() -> Iterator[Ranks]:
    """One rank with Megatron's local layers."""
    with closing(Ranks(1)) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def megatron_with_transformer_engine() -> Iterator[Ranks]:
    """One rank with the layers that trainers use."""
    with closing(Ranks(1, transformer_engine=True)) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two ranks with Megatron's local layers."""
    with closing(Ranks(2)) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def two_ranks_with_transformer_engine() -> Iterator[Ranks]:
    """Two ranks with the layers that trainers use."""
    with closing(Ranks(2, transformer_engine=True)) as ranks:
        yield ranks


@pytest.fixture
def two_ranks_for(case: Case, two_ranks: Ranks, two_ranks_with_transformer_engine: Ranks) -> Ranks:
    """Two ranks with layers that can express the case: local ones, or those that trainers use."""
    return two_ranks_with_transformer_engine if case.without_local else two_ranks


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[Ranks]:
    """Four ranks with Megatron's local layers."""
    with closing(Ranks(4)) as ranks:
        yield ranks


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a job may write."""
    return tmp_path / "target"
