"""The contract of a Resource over each of our backends; see test_backends.py for adding one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda.testing import Place, ResourceContract
from tests.contract.places import local_place, noop_place, ssh_place
from tests.sshd import running_sshd


@pytest.fixture(scope="module")
def ssh_vm() -> Iterator[Place]:
    with running_sshd() as server, ssh_place(server) as place:
        yield place


class TestLocal(ResourceContract):
    @pytest.fixture
    def place(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
        with local_place(Path(tmp_path_factory.mktemp("vm"))) as place:
            yield place


class TestSsh(ResourceContract):
    @pytest.fixture
    def place(self, ssh_vm: Place) -> Place:
        return ssh_vm

    @pytest.fixture
    def doomed(self) -> Iterator[Place]:
        with running_sshd() as other, ssh_place(other) as place:
            yield place


class TestNoop(ResourceContract):
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with noop_place() as place:
            yield place
