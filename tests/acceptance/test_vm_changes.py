"""VMs that are replaced, taken away or left alone, under the jobs of a whole system."""

from __future__ import annotations

from pathlib import Path

import pytest

from remuda import Client, JobSpec
from remuda.embedded.daemon import alive, identify
from tests.invariants import broken
from tests.system import System, eventually

_RUNNING = """SELECT v.id, v.name, i.name AS image FROM vms v JOIN images i ON i.id = v.image_id
              WHERE v.state = 'RUNNING' ORDER BY v.id"""
_STARTED = "SELECT vm_id FROM attempts WHERE state = 'STARTED'"


@pytest.fixture
def broker_url() -> str:
    """One will do: nothing here hangs on the broker."""
    return "filesystem://"


def test_a_rolling_update_under_load(system: System, client: Client) -> None:
    """Each job runs once, on the old image or the new, and a worker that dies delays it only."""
    pool = client.create_pool("sim", provider="local", image="old", instance_count=2, heartbeat_s=1)
    pool.submit()
    eventually("two VMs run", lambda: len(system.query(_RUNNING)) == 2)
    spec = JobSpec(["sleep", "0.2"])
    jobs = client.submit_array(spec, 40, pool=pool)
    eventually("some have ended", lambda: client.counts(pool=pool).get("TERMINATED", 0) >= 3)
    pool.update_image("new", max_unavailable=1)
    pool.wait_updated(timeout_s=60)
    jobs = [*jobs, *client.submit_array(spec, 4, pool=pool)]
    client.wait(jobs, timeout_s=60)
    assert [row["image"] for row in system.query(_RUNNING)] == ["new", "new"]
    assert {job.refresh().reason for job in jobs} == {"OK"}
    started = system.query("SELECT count(*) FROM attempts WHERE started_at IS NOT NULL")
    assert started[0]["count"] == len(
        jobs
    )  # nothing was interrupted: what had not started went elsewhere
    by_image = system.query(
        """SELECT i.name, count(*) > 0 AS some FROM attempts a JOIN vms v ON v.id = a.vm_id
           JOIN images i ON i.id = v.image_id WHERE a.started_at IS NOT NULL GROUP BY 1 ORDER BY 1"""
    )
    assert [row["name"] for row in by_image] == ["new", "old"]
    assert broken(system.query) == {}


def test_an_interrupted_vm_costs_its_job_nothing(system: System, client: Client) -> None:
    """What runs there when the time is up runs again elsewhere, though it may never be retried."""
    pool = client.create_pool("sim", provider="local", instance_count=2, heartbeat_s=1)
    pool.submit()
    eventually("two VMs run", lambda: len(system.query(_RUNNING)) == 2)
    again = 'test "$REMUDA_EPOCH" -gt 1 || sleep 1000'
    job = client.submit(JobSpec(again, shell=True, retries=0), pool=pool)
    eventually("it runs", lambda: system.query(_STARTED))
    [first] = system.query(_STARTED)
    client.interrupt_vm(first["vm_id"], in_s=1)
    job.result(timeout_s=60)
    found = system.query("SELECT vm_id, state FROM attempts ORDER BY epoch")
    assert [row["state"] for row in found] == ["LOST", "COLLECTED"]
    assert found[0]["vm_id"] == first["vm_id"] != found[1]["vm_id"]
    assert system.query("SELECT losses FROM jobs") == [{"losses": 0}]
    eventually(
        "the VM is gone and replaced",
        lambda: (
            first["vm_id"] not in [v["id"] for v in system.query(_RUNNING)]
            and len(system.query(_RUNNING)) == 2
        ),
    )
    assert broken(system.query) == {}


def test_a_vm_nobody_speaks_to_ends_itself(system: System, client: Client, tmp_path: Path) -> None:
    """Its job ends with it, and runs again when workers are back."""
    said = tmp_path / "farewell"
    pool = client.create_pool(
        "sim",
        provider="local",
        heartbeat_s=0.5,
        dead_man_s=3,
        dead_man_command=["touch", str(said)],
    )
    pool.submit()
    pid_file = tmp_path / "pid"
    words = f'test "$REMUDA_EPOCH" -gt 1 || {{ echo $$ > {pid_file}; exec sleep 1000; }}'
    job = client.submit(JobSpec(words, shell=True), pool=pool)
    eventually("it runs", lambda: pid_file.exists() and pid_file.read_text().strip())
    process = identify(int(pid_file.read_text()))
    assert alive(process)
    system.kill("worker")
    system.kill("beat")
    eventually("the VM says farewell", said.exists)
    assert not alive(process)
    system.start_worker()
    system.start_beat()
    job.result(timeout_s=60)
    assert job.refresh().attempts == 2
    assert broken(system.query) == {}
