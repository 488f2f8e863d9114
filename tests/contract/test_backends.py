"""The backends' contract over each of ours, and how kinds are found.

A new backend adds a subclass of `BackendContract` with its fixture `place` (and `doomed`, if it
shares the VM of `place`), and one of `ResourceContract` in test_resources.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from remuda import kinds
from remuda.errors import BadInput
from remuda.testing import BackendContract, Place, Site
from remuda.workers import backends
from remuda.workers.backends import get_backend
from tests.contract.places import local_place, noop_place, ssh_place
from tests.sshd import running_sshd


@pytest.fixture(scope="module")
def ssh_vm() -> Iterator[Place]:
    with running_sshd() as server, ssh_place(server) as place:
        yield place


def runs_once(site: Site, mark: Path) -> None:
    """The strongest proof there is, where the test sees the VM's files."""
    channel = site.connect()
    job = site.job(command=("/bin/sh", "-c", f"echo >> '{mark}'"))
    for _ in range(3):
        site.submit(channel, job)
        site.backend.post_jobs(channel, site.vm, [job], floor=job.attempt_id)
    assert site.exit(job)["why"] == "OK"
    site.submit(channel, job)
    site.backend.free(channel, site.vm, [job.attempt_id])
    site.submit(channel, job)
    channel.close()
    assert mark.read_text() == "\n"


class TestLocal(BackendContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        with local_place(tmp_path) as place:
            yield place

    def test_a_command_runs_once(self, site: Site, tmp_path: Path) -> None:
        runs_once(site, tmp_path / "mark")


class TestSsh(BackendContract):
    @pytest.fixture
    def place(self, ssh_vm: Place) -> Place:
        return ssh_vm

    @pytest.fixture
    def doomed(self) -> Iterator[Place]:
        with running_sshd() as other, ssh_place(other) as place:
            yield place

    def test_a_command_runs_once(self, site: Site, tmp_path: Path) -> None:
        runs_once(site, tmp_path / "mark")


class TestNoop(BackendContract):
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with noop_place() as place:
            yield place


class TestRegistry:
    def test_an_unknown_kind_names_the_known_ones(self) -> None:
        with pytest.raises(BadInput, match=r"no backend 'vapour'.*local, noop"):
            get_backend("vapour")

    def test_a_package_adds_a_kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        point = EntryPoint("mine", "remuda.workers.backends.local:LocalBackend", backends.GROUP)
        points = EntryPoints([point])
        monkeypatch.setattr(kinds, "entry_points", points.select)
        get_backend.cache_clear()
        assert get_backend("mine") is get_backend("mine")
        get_backend.cache_clear()
