"""Kill -9 everything of the embedded default at once; the next command brings all jobs to their end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.processes import system_of
from tests.system import eventually


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home directory, with a space in its name, whose system is stopped in the end."""
    folder = tmp_path / "a home"
    folder.mkdir()
    yield folder
    remuda(folder, "down", "--now", check=False)


def remuda(home: Path, *words: str, check: bool = True) -> str:
    """Run the command line in that home with nothing configured; return its stdout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("REMUDA_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-m", "remuda", *words],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 or not check, (words, done.stdout, done.stderr)
    return done.stdout


def at_work(home: Path) -> list[int]:
    """Return the processes of the system in that home; none if no job runs."""
    found = system_of(home)
    for pid in found:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0"):
                return found
    return []


def test_killed_whole_it_comes_back_with_all_jobs(home: Path) -> None:
    """Server, worker, beat, runners and jobs die together; every job still ends, exactly once."""
    remuda(home, "pool", "create", "sim", "--slots-per-vm", "2", "--max-slots", "2")
    remuda(home, "job", "submit", "--pool", "sim", "--array", "40", "--", "sleep", "0.6")
    eventually(
        "some jobs have ended",
        lambda: json.loads(
            remuda(home, "job", "list", "--pool", "sim", "--state", "TERMINATED", "--json")
        ),
    )
    victims = eventually("a job runs", lambda: at_work(home))
    assert len(victims) >= 4
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it went with its parent
    remuda(home, "job", "wait", "--pool", "sim", "--timeout", "100")
    jobs = json.loads(remuda(home, "job", "list", "--pool", "sim", "--json"))
    assert len(jobs) == 40
    assert {(job["state"], job["reason"]) for job in jobs} == {("TERMINATED", "OK")}
    assert any(job["attempts"] > 1 for job in jobs), "some were running when all was killed"
