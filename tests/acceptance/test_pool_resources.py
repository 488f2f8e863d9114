"""Resources of pools on real VMs: there before jobs start, newer ones without a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import JobSpec
from tests.system import System, eventually, running_system


@pytest.fixture
def system(tmp_path: Path, database_url: str) -> Iterator[System]:
    """A running system."""
    with running_system(tmp_path, database_url=database_url) as running:
        yield running


def test_every_vm_has_them_and_gets_newer_ones(system: System, tmp_path: Path) -> None:
    model = tmp_path / "model.txt"
    model.write_text("first")
    prepare = ["sh", "-c", 'cat "$REMUDA_RESOURCES/model.txt"']
    show = 'cat "$REMUDA_RESOURCES/model.txt" "$REMUDA_RESOURCES"/more/* 2>/dev/null; true'
    with system.client() as client:
        pool = client.create_pool(
            "sim", resources=[(str(model), "model.txt")], preparation=prepare, instance_count=2
        )
        pool.submit()
        [first] = client.submit_many([JobSpec(show, shell=True)], pool="sim")
        assert first.result(timeout_s=60).stdout == b"first"
        eventually("both are prepared", lambda: pool.stdout() == b"first" * 2)
        before = {vm.id for vm in client.vms(pool="sim")}
        model.write_text("second")
        extra = tmp_path / "extra.txt"
        extra.write_text(" and more")
        pool.update_resources([(str(model), "model.txt"), (str(extra), "more/extra.txt")])
        jobs = client.submit_many(
            [JobSpec(show, shell=True, wait_for_resources=True)] * 4, pool="sim"
        )
        client.wait(jobs, timeout_s=60)
        assert {job.result().stdout for job in jobs} == {b"second and more"}
        eventually(
            "every VM has them",
            lambda: (
                {
                    row["resources_version"]
                    for row in system.query(
                        "SELECT resources_version FROM vms WHERE state = 'RUNNING'"
                    )
                }
                == {2}
            ),
        )
        assert {vm.id for vm in client.vms(pool="sim")} == before  # no VM was restarted

        # One that cannot be had is told by the job that waits for it; others run on.
        pool = client.create_pool("lone", instance_count=1).submit()
        client.submit(JobSpec("true"), pool="lone").result(timeout_s=60)
        system.query(
            """WITH file AS (
                 INSERT INTO pool_resources (pool_id, name, url, sha256, version)
                 VALUES (%(pool)s, 'x', 'file:///no/such/file', 'abc', 1))
               UPDATE pools SET resources_version = 1 WHERE id = %(pool)s RETURNING id""",
            pool=pool.id,
        )
        job = client.submit(JobSpec("true", wait_for_resources=True), pool="lone").wait(60)
        assert job.reason == "STAGING"
        assert "resource 'x' cannot be put" in (job.message or "")
        assert client.submit(JobSpec("true"), pool="lone").wait(60).reason == "OK"
