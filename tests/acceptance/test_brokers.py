"""The whole system over every broker: jobs with files, VMs that come and go, nothing lost."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from remuda import JobFailed, JobSpec
from tests.invariants import broken
from tests.system import System, eventually


def test_jobs_with_files_on_an_elastic_pool(system: System, tmp_path: Path) -> None:
    """The main job: grows from nothing, runs jobs with files, tells failures apart, shrinks."""
    script = tmp_path / "double.py"
    script.write_text(
        "import sys\n"
        "text = open('in.txt').read()\n"
        "open('out/result.txt', 'w').write(text * 2)\n"
        "print('stdout of', sys.argv[1]); print('stderr', file=sys.stderr)\n"
    )
    (tmp_path / "in.txt").write_text("twice ")
    with system.client() as client:
        pool = client.create_pool(
            "sim", provider="local", slots_per_vm=2, heartbeat_s=1, stalling_interval_s=10
        )
        pool.setup_elastic(maximum_total_slots=4, minimum_idle_time_seconds=1, resize_period=1)
        pool.submit()
        python = shlex.quote(sys.executable)
        spec = JobSpec(
            ["sh", "-c", f"mkdir -p out && exec {python} double.py {{index}}"],
            inputs=[(str(script), "double.py"), (str(tmp_path / "in.txt"), "in.txt")],
            outputs=["out/result.txt"],
            output_dir=tmp_path / "results" / "{index}",
        )
        jobs = client.submit_array(spec, 12, pool=pool)
        failing = client.submit(JobSpec(["sh", "-c", "echo why >&2; exit 7"]), pool=pool)
        for job in client.as_completed(jobs, timeout_s=60):
            result = job.result()
            assert result.outputs["out/result.txt"].read_text() == "twice twice "
            assert result.stdout.startswith(b"stdout of ")
            assert result.stderr == b"stderr\n"
            assert (result.usage.wall_s or 0) > 0
        for index in range(12):
            assert (tmp_path / "results" / str(index) / "out" / "result.txt").exists()
        with pytest.raises(JobFailed) as failure:
            failing.result(timeout_s=30)
        assert (failure.value.exit_code, failure.value.reason) == (7, "NONZERO")
        assert "why" in failure.value.stderr_tail
        eventually("the pool is back at zero", lambda: not client.vms(pool=pool), timeout_s=30)
        pool.close()
        pool.wait_closed(timeout_s=15)
    assert broken(system.query) == {}


def test_celery_looks_as_its_users_expect(system: System) -> None:
    """`inspect ping` finds the worker, over every broker; an idle worker ends within 5 seconds."""
    command = [sys.executable, "-m", "celery", "-A", "remuda.tasks", "inspect", "ping", "-t", "2"]
    eventually(
        "the worker answers",
        lambda: (
            "pong"
            in subprocess.run(
                command, env=system.environment, capture_output=True, text=True, check=False
            ).stdout
        ),
        timeout_s=40,
    )
    assert system.stop("beat") < 5
    assert system.stop("worker") < 5, system.log("worker")
    assert "Traceback" not in system.log("worker")


def test_the_doctor_finds_nothing(system: System) -> None:
    """On every broker it sees the worker, and that every queue is served."""
    eventually("a sweep has run", lambda: system.query("SELECT name FROM sweeps"))

    def waiting() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "remuda", "doctor", "--json", "--providers"],
            env=system.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        checks = {check["name"]: check for check in json.loads(done.stdout)}
        assert {check["status"] for check in checks.values()} == {"ok"}, done.stdout
        return str(checks["queues"]["detail"])

    # Of what beat sends, something may be on its way just when it looks.
    eventually("nothing waits", lambda: waiting() == "control 0, jobs 0, vms 0 waiting")
