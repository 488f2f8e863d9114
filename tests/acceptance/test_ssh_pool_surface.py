"""Resources, secrets and what VMs say, on hosts reached by SSH."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import JobSpec
from tests.sshd import Sshd, two_sshd
from tests.system import System, eventually, running_system

__all__ = ["two_sshd"]
VALUE = uuid.uuid4().hex


@pytest.fixture
def system(tmp_path: Path, database_url: str, two_sshd: list[Sshd]) -> Iterator[System]:
    """A running system that ends before its hosts do."""
    with running_system(tmp_path, database_url=database_url) as running:
        yield running


def test_all_of_it_reaches_hosts(system: System, two_sshd: list[Sshd], tmp_path: Path) -> None:
    model = tmp_path / "model.txt"
    model.write_text("first\n")
    show = 'cat "$REMUDA_RESOURCES"/*.txt; printf %s "$TOKEN" | sha256sum'
    told = hashlib.sha256(VALUE.encode()).hexdigest()
    with system.client() as client:
        client.init_secrets()
        client.put_secret("TOKEN", VALUE)
        pool = client.create_pool(
            "lab",
            provider="static",
            settings={"hosts": [host.entry(cores=2) for host in two_sshd]},
            slots_per_vm=2,
            instance_count=2,
            heartbeat_s=1,
            constraints={"min_cores": 1},
            resources=[(str(model), "model.txt")],
            secrets={"names": ["TOKEN"]},
            preparation=["sh", "-c", 'echo preparing; cat "$REMUDA_RESOURCES/model.txt" >&2'],
        ).submit()
        eventually("both run", lambda: pool.update().running_instance_count == 2)
        first = client.submit(JobSpec(show, shell=True), pool=pool).result(timeout_s=60)
        assert first.stdout.decode().split()[:2] == ["first", told]
        assert pool.fresh_stdout() == b"preparing\n" * 2
        assert pool.stderr() == b"first\n" * 2
        model.write_text("second\n")
        pool.update_resources([(str(model), "model.txt"), (str(model), "copy.txt")])
        jobs = client.submit_many(
            [JobSpec(f"{show}; sleep 1", shell=True, wait_for_resources=True)] * 4, pool=pool
        )
        client.wait(jobs, timeout_s=60)
        assert {job.result().stdout.decode().split()[1] for job in jobs} == {"second"}
        assert len({job.vm for job in jobs}) == 2
        found = [
            path
            for host in two_sshd
            for path in host.home.rglob("*")
            if path.is_file() and VALUE.encode() in path.read_bytes()
        ]
        assert found == []
