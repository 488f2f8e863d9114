"""Stops and starts: running jobs are left alone, several workers share, an idle system is silent."""

from __future__ import annotations

import os
import signal
import sys
from datetime import datetime
from pathlib import Path

import pytest

from remuda import Client, DatabaseUnavailable, JobSpec
from remuda.client import Pool
from remuda.config import load_settings
from tests.invariants import broken
from tests.system import System, eventually


def running_attempts(system: System) -> list[int]:
    """Return the attempts that have started."""
    return [row["id"] for row in system.query("SELECT id FROM attempts WHERE state = 'STARTED'")]


def test_a_warm_shutdown_leaves_running_jobs_alone(
    system: System, client: Client, pool: Pool, tmp_path: Path
) -> None:
    """The next worker re-attaches: same attempt, same process, output complete."""
    gate = tmp_path / "gate"
    script = (
        "import os, sys, time\n"
        "print('before', flush=True)\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.02)\n"
        "print('after')\n"
    )
    job = client.submit(JobSpec([sys.executable, "-c", script, str(gate)]), pool=pool)
    before = eventually("the job runs", lambda: running_attempts(system))
    assert system.stop("worker") < 5
    assert running_attempts(system) == before
    assert system.query("SELECT watcher FROM vms WHERE watcher IS NOT NULL") == []
    gate.touch()  # it ends while nobody listens
    system.start_worker("second")
    result = job.result(timeout_s=30)
    assert result.stdout == b"before\nafter\n"
    assert job.attempts == 1
    assert broken(system.query) == {}


def test_two_workers_and_two_beats_share_the_work(
    system: System, client: Client, pool: Pool
) -> None:
    """More of each does no harm; when one is killed its VMs are taken over and nothing is lost."""
    system.start_worker("second")
    system.start_beat("beat2")
    jobs = client.submit_array(JobSpec(["sleep", "0.05"]), 60, pool=pool)
    eventually("some jobs have ended", lambda: client.counts(pool=pool).get("TERMINATED", 0) >= 10)
    system.kill("worker")
    client.wait(jobs, timeout_s=60)
    assert client.counts(pool=pool)["TERMINATED"] == 60
    # What was placed and not handed over when it was killed may be recalled: that never started.
    assert (
        system.query(
            """SELECT id, state, reason FROM attempts
               WHERE reason <> 'OK' AND NOT (state = 'CANCELLED' AND started_at IS NULL)"""
        )
        == []
    )
    assert broken(system.query) == {}


def test_an_idle_system_is_silent(system: System, client: Client, pool: Pool) -> None:
    """After a job, with a VM idling, sweeps come and go without a line in any log."""
    client.submit(JobSpec(["true"]), pool=pool).result(timeout_s=60)

    def last_run() -> list[datetime]:
        found = system.query("SELECT last_run_at AS at FROM sweeps WHERE name = 'declare_stalled'")
        return [row["at"] for row in found]

    eventually(  # the last news there is to tell
        "the pool's state is known",
        lambda: system.query("SELECT id FROM pools WHERE state = 'FULLY_EXECUTING'"),
    )
    started = eventually("a sweep has run", last_run)[0]
    sizes = {name: len(system.log(name)) for name in system.processes}
    eventually(
        "three more sweeps have run",
        lambda: (last_run()[0] - started).seconds >= 9,
    )
    assert {name: len(system.log(name)) for name in system.processes} == sizes


def test_a_database_that_is_down_at_submit(tmp_path: Path) -> None:
    """A clear error, at once, that holds no password."""
    settings = load_settings(
        database_url="postgresql://someone:secret-word@127.0.0.1:9/none",
        data_dir=tmp_path / "data",
        state_dir=tmp_path / "state",
    )
    with pytest.raises(DatabaseUnavailable) as caught, Client(settings, start=False) as client:
        client.submit(JobSpec(["true"]), pool="sim")
    assert "secret-word" not in repr(caught.value) + str(caught.value) + repr(settings)
    assert "does not answer" in str(caught.value)


def test_a_silent_vm_is_stalled_replaced_and_ended(
    system: System, client: Client, tmp_path: Path
) -> None:
    """Its runner hangs, heartbeats stay away: its job runs again elsewhere, the machine goes."""
    pool = client.create_pool(
        "fragile", provider="local", slots_per_vm=1, heartbeat_s=0.5, stalling_interval_s=3
    )
    pool.setup_elastic(maximum_total_slots=1, resize_period=1, minimum_idle_time_seconds=60)
    pool.submit()
    gate = tmp_path / "gate"
    job = client.submit(
        JobSpec(
            ["sh", "-c", 'echo started; until [ -e "$1" ]; do sleep 0.1; done', "-", str(gate)]
        ),
        pool=pool,
    )
    eventually("the job runs", lambda: running_attempts(system))
    first = client.vms(pool=pool)[0]
    runner = int(Path(str(first.address["home"]), "runner.pid").read_text().split()[0])
    os.kill(runner, signal.SIGSTOP)
    eventually(
        "the job is lost with its VM",
        lambda: system.query("SELECT id FROM attempts WHERE state = 'LOST'"),
        timeout_s=30,
    )
    gate.touch()
    assert job.result(timeout_s=60).stdout == b"started\n"
    assert job.attempts == 2
    path = eventually(
        "the machine is gone",
        lambda: (
            [
                row["to_state"]
                for row in system.query(
                    "SELECT to_state FROM events WHERE kind = 'vm' AND subject_id = %(id)s ORDER BY id",
                    id=first.id,
                )
            ][-3:]
            == ["STALLED", "STOPPING", "HALTED"]
        ),
        timeout_s=30,
    )
    assert path
    assert not Path(str(first.address["home"])).exists()
    assert broken(system.query) == {}
