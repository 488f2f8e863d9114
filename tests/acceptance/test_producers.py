"""Producers that reach only the broker, forking workers, pools closed in a hurry."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from remuda import BadInput, Client, JobSpec
from remuda.client import Pool
from tests.invariants import broken
from tests.system import System, eventually


def call(system: System, *arguments: object) -> None:
    """Send `remuda.enqueue` as any Celery user would."""
    words = [sys.executable, "-m", "celery", "-A", "remuda.tasks", "call", "remuda.enqueue"]
    subprocess.run(
        [*words, "--args", json.dumps(arguments)],
        env=system.environment,
        check=True,
        capture_output=True,
    )


def test_enqueue(system: System, client: Client, pool: Pool) -> None:
    """Plain JSON becomes jobs, once per key; what is wrong is told in the log and changes nothing."""
    specs = [{"command": ["echo", "one"]}, {"command": ["echo", "two"], "priority": 5}]
    call(system, specs, "sim", "alice", "key-1")
    call(system, specs, "sim", "alice", "key-1")
    call(system, [{"command": []}], "sim", "alice", "key-2")
    call(system, [{"command": ["true"], "inputs": ["/etc/passwd"]}], "sim", "alice", "key-3")
    call(system, specs[:1], "no-such-pool", "alice", "key-4")
    eventually("the wrong ones are told", lambda: "no-such-pool" in system.log("worker"))
    jobs = eventually("the jobs are there", lambda: client.jobs(pool=pool, owner="alice"))
    client.wait(jobs, timeout_s=30)
    assert sorted(job.stdout for job in jobs) == [b"one\n", b"two\n"]
    assert system.query("SELECT count(*) AS count FROM jobs") == [{"count": 2}]


def test_a_forking_worker(system: System, client: Client, pool: Pool) -> None:
    """`-P prefork` works too: tasks run in children, the parent watches the VMs."""
    system.stop("worker")
    system.start_worker("forking", "-P", "prefork", "-c", "2")
    spec = JobSpec("echo {index} > out.txt", shell=True, outputs=["out.txt"])
    jobs = client.submit_array(spec, 10, pool=pool)
    for index, job in enumerate(jobs):
        assert job.result(timeout_s=60).outputs["out.txt"].read_text() == f"{index}\n"
    assert system.stop("forking") < 5, system.log("forking")
    assert broken(system.query) == {}


def test_close_now_ends_leases_and_jobs(system: System, client: Client, pool: Pool) -> None:
    """A pool closed without draining waits for nobody: neither a lease nor a running job."""
    client.submit(JobSpec(["true"]), pool=pool).result(timeout_s=60)
    lease = client.acquire(pools=["sim"], ttl_s=600, timeout=30)
    job = client.submit(JobSpec(["sleep", "300"]), pool=pool)
    pool.close(now=True)
    pool.wait_closed(timeout_s=30)
    assert job.wait(timeout_s=10).reason == "CANCELLED"
    assert system.query("SELECT id FROM leases WHERE released_at IS NULL") == []
    lease.release()
    assert broken(system.query) == {}


def test_a_pool_that_cannot_launch_says_so(system: System, client: Client) -> None:
    """An unknown provider is told in the pool, which pauses, and in the VM; others go on."""
    for kinds in ({"provider": "no-such-provider"}, {"backend": "no-such-backend"}):
        with pytest.raises(BadInput, match="no-such-") as caught:
            client.create_pool("odd", slots_per_vm=1, **kinds)  # type: ignore[arg-type]
        assert "known: " in caught.value.hint
        assert "installed_elsewhere" in caught.value.hint
    odd = client.create_pool(
        "odd",
        provider="no-such-provider",
        backend="local",
        slots_per_vm=1,
        installed_elsewhere=True,
    )
    odd.setup_elastic(maximum_total_slots=1, resize_period=1)
    odd.submit()
    client.submit(JobSpec(["true"]), pool=odd)
    eventually(
        "the failure is counted",
        lambda: system.query(
            "SELECT id FROM pools WHERE state = 'FAILURE' AND launch_failures = 1"
        ),
        timeout_s=40,
    )
    assert "no-such-provider" in " ".join(client.pool("odd").explain())
    rows = system.query("SELECT error FROM vms WHERE state IN ('ERROR', 'STOPPING', 'HALTED')")
    assert rows
    assert all("no-such-provider" in str(row["error"]) for row in rows)
    odd.close()
    odd.wait_closed(timeout_s=30)
    assert system.query("SELECT id FROM vms WHERE state <> 'HALTED'") == []
