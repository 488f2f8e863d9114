"""A backup of a system at work, brought back elsewhere: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from remuda import JobSpec
from tests.invariants import broken
from tests.system import System, eventually, running_system


def remuda(system: System, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command against the system."""
    return subprocess.run(
        [sys.executable, "-m", "remuda", *map(str, words)],
        env=system.environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def starts(folder: Path) -> list[str]:
    """Return which jobs have started, as often as they did."""
    return sorted(path.stem for path in folder.iterdir())


def test_a_backup_is_brought_back(
    tmp_path: Path, database_url: str, empty_database_url: str
) -> None:
    marks, gate = tmp_path / "marks", tmp_path / "gate"
    marks.mkdir()
    script = 'mktemp "$0/$1.XXXXXX"; [ "$1" != long ] || until [ -e "$2" ]; do sleep 0.1; done'
    backup = tmp_path / "backup"

    def spec(name: str) -> JobSpec:
        command = ["sh", "-c", f"{script}; echo {name} > out", str(marks), name, str(gate)]
        return JobSpec(command, name=name, outputs=["out"])

    with running_system(tmp_path, database_url=database_url) as system, system.client() as client:
        pool = client.create_pool("sim", slots_per_vm=2, heartbeat_s=1)
        pool.submit()
        early = client.submit(spec("early"), pool=pool)
        early.result(timeout_s=60)
        long = client.submit(spec("long"), pool=pool)
        eventually("it runs", lambda: long.refresh().state == "RUNNING")
        told = remuda(system, "db", "backup", backup)
        assert told.returncode == 0, told.stderr
        assert "2 files" in told.stdout or "1 file" in told.stdout
        late = client.submit(spec("late"), pool=pool)  # what the backup knows nothing of
        late.result(timeout_s=60)
        refused = remuda(system, "db", "restore", backup, "--replace")
        assert refused.returncode == 1
        assert "workers are at work" in refused.stderr
        system.stop("beat")
        system.stop("worker")

        other = System(
            tmp_path,
            database_url=empty_database_url,
            broker_url="filesystem://",
            storage_url=(tmp_path / "elsewhere").as_uri(),
        )
        done = remuda(other, "db", "restore", backup)
        assert done.returncode == 0, done.stderr
        assert "1 VM will be terminated, 1 attempt on them given up" in done.stdout
        assert remuda(other, "db", "restore", backup).returncode == 1  # it is not empty any more
        try:
            other.start_worker()
            other.start_beat()
            with other.client() as restored:
                assert restored.job(early.id).result().outputs["out"].read_bytes() == b"early\n"
                newer = restored.submit(spec("newer"), pool="sim")
                assert newer.id > late.id + 1000
                assert newer.result(timeout_s=60).outputs["out"].read_bytes() == b"newer\n"
                gate.touch()
                again = restored.job(long.id)
                assert again.result(timeout_s=60).outputs["out"].read_bytes() == b"long\n"
                assert again.attempts == 2
                eventually(
                    "the VM of that time is gone",
                    lambda: other.query("SELECT FROM vms WHERE state = 'HALTED'"),
                )
            assert broken(other.query) == {}
        finally:
            other.close()
    assert starts(marks) == ["early", "late", "long", "long", "newer"]


def test_what_is_no_backup_is_refused(tmp_path: Path, database_url: str) -> None:
    system = System(tmp_path, database_url=database_url, broker_url="filesystem://")
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    assert "holds no backup" in remuda(system, "db", "backup", other).stderr
    assert "there is no backup" in remuda(system, "db", "restore", tmp_path / "none").stderr
    backup = tmp_path / "backup"
    for _ in range(2):  # the second goes into the same folder
        assert remuda(system, "db", "backup", backup).returncode == 0
    assert (backup.stat().st_mode & 0o777) == 0o700
    with (backup / "database.dump").open("ab") as file:
        file.write(b"x")
    assert "is damaged" in remuda(system, "db", "restore", backup).stderr
    manifest = json.loads((backup / "manifest.json").read_text())
    (backup / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    assert "format 99" in remuda(system, "db", "restore", backup).stderr


@pytest.mark.parametrize("words", [["backup"], ["restore"]])
def test_a_database_that_is_away_is_told_without_its_password(
    tmp_path: Path, words: list[str]
) -> None:
    system = System(
        tmp_path,
        database_url="postgresql://someone:secret-word@127.0.0.1:9/none",
        broker_url="filesystem://",
    )
    told = remuda(system, "db", *words, tmp_path / "backup")
    assert told.returncode == 1
    assert "secret-word" not in told.stderr + told.stdout
