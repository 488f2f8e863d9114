"""A system on the embedded broker with one static pool, for tests of what jobs do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import Client
from remuda.client import Pool
from tests.system import System, running_system


@pytest.fixture
def system(tmp_path: Path, database_url: str) -> Iterator[System]:
    """A running system: one worker, one beat."""
    with running_system(tmp_path, database_url=database_url) as running:
        yield running


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    """A client of the system."""
    with system.client() as made:
        yield made


@pytest.fixture
def pool(client: Client) -> Pool:
    """A pool of one VM with two slots."""
    made = client.create_pool("sim", provider="local", slots_per_vm=2, heartbeat_s=1)
    made.submit()
    return made
