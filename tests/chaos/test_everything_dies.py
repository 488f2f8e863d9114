"""Kill -9 everything in turn while 300 jobs run; every job must end exactly once."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import Client, JobSpec
from remuda.config import load_settings
from remuda.embedded import ensure_server, server_status, stop_server
from remuda.models import migrate
from remuda.models.database import make_engine
from remuda.workers.providers import get_provider
from tests.invariants import broken
from tests.system import System, eventually

JOBS = 300
# Each start and each end of a command leaves one line outside the system's reach.
MARK = """
import os, sys, time
def mark(what):
    line = f"{what} {os.environ['REMUDA_JOB_ID']} {os.environ['REMUDA_ATTEMPT_ID']}\\n"
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode())
    os.close(fd)
mark("start")
time.sleep(0.15)
mark("end")
"""


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A system on an embedded server of its own, since that is to die too."""
    settings = load_settings(data_dir=tmp_path / "pg", state_dir=tmp_path / "pgstate")
    url = ensure_server(settings)
    engine = make_engine(url)
    migrate.upgrade(engine)
    engine.dispose()
    running = System(tmp_path, database_url=url, broker_url="filesystem://")
    try:
        running.start_worker()
        running.start_beat()
        yield running
        running.close()
    finally:
        for name in list(running.processes):
            running.kill(name)
        stop_server(settings)


def test_every_job_ends_once(system: System, tmp_path: Path) -> None:
    """Worker, beat, a runner and the database are killed; a VM vanishes; invariants hold."""
    marks = tmp_path / "marks"
    settings = load_settings(data_dir=tmp_path / "pg", state_dir=tmp_path / "pgstate")
    with system.client() as client:
        pool = client.create_pool(
            "sim", provider="local", slots_per_vm=2, heartbeat_s=0.5, stalling_interval_s=4
        )
        pool.setup_elastic(
            minimum_total_slots=6,
            maximum_total_slots=6,
            resize_period=1,
            minimum_idle_time_seconds=60,
        )
        pool.submit()
        jobs = client.submit_array(
            JobSpec([sys.executable, "-S", "-c", MARK, str(marks)]), JOBS, pool=pool
        )

        def ended(share: float) -> None:
            eventually(
                f"{share:.0%} of the jobs have ended",
                lambda: client.counts(pool=pool).get("TERMINATED", 0) >= share * JOBS,
                timeout_s=90,
            )

        ended(0.1)
        system.kill("worker")
        system.start_worker()
        ended(0.25)
        system.kill("beat")
        system.start_beat()
        _kill_runner(client)
        ended(0.45)
        _make_vanish(client)
        ended(0.6)
        server = server_status(settings)
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        eventually("the server is dead", lambda: not server_status(settings).running)
        eventually("the server is back", lambda: ensure_server(settings), timeout_s=30)
        ended(0.8)
        system.kill("worker")
        system.start_worker()
        client.wait(jobs, timeout_s=120)
        pool.close()
        eventually("the pool is closed", lambda: pool_state(system) == "CLOSED", timeout_s=60)
    assert broken(system.query) == {}
    # Invariant 4, both ways: no machine is left, and every row says so.
    assert get_provider("local", system.settings).list("") == []
    assert system.query("SELECT id, state FROM vms WHERE state <> 'HALTED'") == []
    reasons = system.query("SELECT reason, count(*) AS count FROM jobs GROUP BY 1")
    assert reasons == [{"reason": "OK", "count": JOBS}], reasons
    _check_marks(system, marks)


def pool_state(system: System) -> str:
    """Return the state of the one pool."""
    return str(system.query("SELECT state FROM pools")[0]["state"])


def _kill_runner(client: Client) -> None:
    """Kill -9 the runner of a busy VM; its jobs go on as orphans until the next one ends them."""
    vm = _busy(client)[0]
    os.kill(int(Path(vm, "runner.pid").read_text().split()[0]), signal.SIGKILL)


def _make_vanish(client: Client) -> None:
    """Take a busy VM away altogether: every process of it, and its disk."""
    home = _busy(client)[-1]
    marker = f"REMUDA_VM_HOME={home}".encode()
    os.kill(int(Path(home, "runner.pid").read_text().split()[0]), signal.SIGKILL)
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue
    shutil.rmtree(home)


def _busy(client: Client) -> list[str]:
    return eventually(
        "some VM is busy",
        lambda: [
            str(vm.address["home"])
            for vm in client.vms(state="RUNNING")
            if vm.jobs and Path(str(vm.address["home"]), "runner.pid").exists()
        ],
    )


def _check_marks(system: System, marks: Path) -> None:
    """Compare the marks with the rows: each attempt started at most once, each job ended once."""
    lines = [line.split() for line in marks.read_text().splitlines()]
    starts = Counter(attempt for what, _, attempt in lines if what == "start")
    assert max(starts.values()) == 1, starts.most_common(3)
    good = {
        str(row["id"]) for row in system.query("SELECT id FROM attempts WHERE state = 'COLLECTED'")
    }
    assert len(good) == JOBS
    ends = {attempt for what, _, attempt in lines if what == "end"}
    assert good <= ends
    known = {str(row["id"]) for row in system.query("SELECT id FROM attempts")}
    assert set(starts) <= known
