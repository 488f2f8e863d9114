"""A system on each broker with one static pool, for tests of what jobs do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import Client
from remuda.client import Pool
from tests.system import System, running_system


@pytest.fixture(params=["filesystem", "amqp", "redis"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """The URL of each broker in turn."""
    fixture = {"amqp": "rabbitmq_url", "redis": "redis_url"}.get(request.param)
    return str(request.getfixturevalue(fixture)) if fixture else "filesystem://"


@pytest.fixture
def system(tmp_path: Path, database_url: str, broker_url: str) -> Iterator[System]:
    """A running system, one worker and one beat, on each broker in turn."""
    with running_system(tmp_path, database_url=database_url, broker_url=broker_url) as running:
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
