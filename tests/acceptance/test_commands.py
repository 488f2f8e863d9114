"""What commands can do to the one that runs them: every end is told as it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from remuda import Client, JobFailed, JobSpec
from remuda.client import Pool
from tests.invariants import broken
from tests.system import System, eventually


def failure_of(client: Client, pool: Pool, spec: JobSpec) -> JobFailed:
    """Return how a job that must fail failed."""
    with pytest.raises(JobFailed) as caught:
        client.submit(spec, pool=pool).result(timeout_s=60)
    return caught.value


def test_how_commands_end(client: Client, pool: Pool, system: System) -> None:
    """Exit codes, signals and reasons are kept apart, and nothing is taken for something else."""
    gone = failure_of(client, pool, JobSpec(["no-such-command-anywhere"]))
    assert (gone.exit_code, gone.reason) == (127, "NONZERO")
    assert "no-such-command-anywhere" in str(gone)
    odd = failure_of(client, pool, JobSpec(["sh", "-c", "exit 200"]))
    assert (odd.exit_code, odd.signal, odd.reason) == (200, None, "NONZERO")
    killed = failure_of(client, pool, JobSpec(["sh", "-c", "kill -USR1 $$"]))
    assert (killed.exit_code, killed.signal, killed.reason) == (
        None,
        int(signal.SIGUSR1),
        "SIGNALLED",
    )
    slow = failure_of(client, pool, JobSpec(["sleep", "60"], walltime_s=0.3))
    assert slow.reason == "WALLTIME"
    absent = failure_of(client, pool, JobSpec(["true"], outputs=["never.txt"]))
    assert (absent.reason, absent.exit_code) == ("STAGING", 0)
    assert "never.txt" in str(absent)
    assert broken(system.query) == {}


def test_output_of_any_kind_and_size(client: Client, pool: Pool) -> None:
    """100 MB is kept up to the limit with its cut marked; binary comes back byte by byte."""
    every_byte = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 10)"
    result = client.submit(JobSpec([sys.executable, "-c", every_byte]), pool=pool).result(
        timeout_s=60
    )
    assert result.stdout == bytes(range(256)) * 10
    middle = "import sys; sys.stdout.write('x' * 5_000_000); sys.stderr.write('y' * 300_000)"
    result = client.submit(JobSpec([sys.executable, "-c", middle]), pool=pool).result(timeout_s=60)
    assert result.stdout == b"x" * 5_000_000
    assert result.stderr == b"y" * 300_000
    flood = client.submit(
        JobSpec(["sh", "-c", "head -c 104857600 /dev/zero; echo end"]), pool=pool
    ).result(timeout_s=120)
    assert len(flood.stdout) <= (64 << 20) + 1024
    assert flood.stdout.endswith(b"end\n")
    assert b"cut" in flood.stdout[32 << 20 : (32 << 20) + 512] or b"cut" in flood.stdout


def test_children_left_behind_end_with_their_job(client: Client, pool: Pool) -> None:
    """A command that exits but leaves children behind, holding its output, ends at once."""
    job = client.submit(JobSpec(["sh", "-c", "sleep 300 & echo $!"]), pool=pool)
    result = job.result(timeout_s=30)
    child = int(result.stdout)
    eventually("the child is gone", lambda: not _alive(child), timeout_s=10)


def _alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_cancel(client: Client, pool: Pool, system: System) -> None:
    """Waiting jobs end at once, running ones with their children; ended ones stay as they are."""
    done = client.submit(JobSpec(["true"]), pool=pool)
    done.result(timeout_s=30)
    running = client.submit(
        JobSpec(["sh", "-c", "sleep 300 & echo $!; wait"], follow=True), pool=pool
    )
    child = eventually(
        "the job runs",
        lambda: system.query("SELECT data FROM output_chunks WHERE stream = 'stdout'"),
    )
    waiting = client.submit_array(JobSpec(["sleep", "300"]), 5, pool=pool)
    assert client.cancel([done, running, *waiting]) >= 6
    client.wait([running, *waiting], timeout_s=20)
    rows = system.query("SELECT reason, count(*) AS count FROM jobs GROUP BY 1 ORDER BY 1")
    assert rows == [{"reason": "CANCELLED", "count": 6}, {"reason": "OK", "count": 1}]
    eventually("the child is gone", lambda: not _alive(int(bytes(child[0]["data"]))), timeout_s=10)
    assert broken(system.query) == {}


def test_retries(client: Client, pool: Pool, tmp_path: Path) -> None:
    """A failed job is run again as often as it may, as new attempts."""
    counter = tmp_path / "tries"
    script = f"echo x >> {counter}; test $(wc -l < {counter}) -ge 3"
    job = client.submit(JobSpec(["sh", "-c", script], retries=2), pool=pool)
    assert job.result(timeout_s=60).exit_code == 0
    assert job.attempts == 3
    hopeless = client.submit(JobSpec(["false"], retries=1), pool=pool)
    with pytest.raises(JobFailed) as caught:
        hopeless.result(timeout_s=60)
    assert caught.value.attempt == 2


def test_a_full_disk_in_the_sandbox(tmp_path: Path, database_url: str) -> None:
    """Inputs that do not fit end the attempt as STAGING; the VM goes on with the next job."""
    small = tmp_path / "small"
    small.mkdir()
    words = [sys.executable, "-m", "tests.acceptance.full_disk", str(small), database_url]
    # A mount of our own in a namespace of our own: nothing is left of it afterwards.
    unshare = [shutil.which("unshare") or "unshare", "--mount"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    done = subprocess.run(
        [*unshare, *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reason STAGING" in done.stdout
    assert "next job exit 0" in done.stdout
