"""A whole system over simulated VMs: no job starts a process, faults come from the pool's settings."""

from __future__ import annotations

import pytest

from remuda import Client, JobFailed, JobSpec, RetryPolicy
from tests.invariants import broken
from tests.system import System, eventually


@pytest.fixture
def broker_url() -> str:
    """One will do: the VMs know nothing of it."""
    return "filesystem://"


def test_a_pool_of_simulated_vms(system: System, client: Client) -> None:
    """Jobs run, fail and leave files; a spawn that fails is made up for; a restart replaces the VMs."""
    faults = {"spawn": ["CapacityError"], "lose_spawns": 1}
    pool = client.create_pool(
        "sim",
        provider="noop",
        instance_count=2,
        settings={"provider_faults": faults, "faults": {"duplicate_rate": 0.5, "seed": 1}},
        heartbeat_s=0.5,
    )
    pool.submit()
    good = client.submit(
        JobSpec(["noop", "--stdout", "hello", "--write", "out=1,2"], outputs=["out"]), pool=pool
    )
    bad = client.submit(JobSpec(["noop", "--exit", "3"]), pool=pool)
    assert good.result(timeout_s=60).stdout == b"hello"
    with pytest.raises(JobFailed) as caught:
        bad.result(timeout_s=30)
    assert caught.value.exit_code == 3
    long = client.submit(JobSpec(["noop", "--sleep", "1000"], retries=0), pool=pool)
    eventually("it runs", lambda: system.query("SELECT 1 FROM attempts WHERE state = 'STARTED'"))
    short = client.submit(JobSpec(["noop", "--sleep", "0.1"]), pool=pool)
    system.kill("worker")
    system.start_worker("second")
    short.result(timeout_s=60)
    eventually(
        "the long one runs on a new VM",
        lambda: system.query("SELECT 1 FROM attempts WHERE state = 'STARTED'"),
    )
    long.cancel()
    eventually("it is cancelled", lambda: client.job(long.id).state == "TERMINATED")
    assert broken(system.query) == {}


def test_retries_are_punctual_whatever_failed(system: System, client: Client) -> None:
    """Also after a missing output, and without the sweeps that would find them late."""
    pool = client.create_pool("sim", provider="noop", slots_per_vm=2)
    pool.submit()
    client.submit(JobSpec(["noop"]), pool=pool).result(timeout_s=60)
    system.kill("beat")
    retry = RetryPolicy(max_retries=1, delay_s=2, jitter=0)
    words = ["noop", "--write", "one=1"]  # with something to fetch it is the collection that fails
    specs = [
        JobSpec(words, outputs=["one", "two"], retry=retry),
        JobSpec(["noop", "--exit", "1"], retry=retry),
    ]
    jobs = client.submit_many(specs, pool=pool)
    client.wait(jobs, timeout_s=30)
    assert [job.refresh().reason for job in jobs] == ["STAGING", "NONZERO"]
    found = system.query(
        """SELECT b.placed_at - a.ended_at AS pause FROM attempts a
           JOIN attempts b ON b.job_id = a.job_id AND b.epoch = a.epoch + 1"""
    )
    pauses = [row["pause"].total_seconds() for row in found]
    assert len(pauses) == 2
    assert all(1.9 <= pause < 4 for pause in pauses), pauses
