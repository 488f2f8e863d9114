"""What a person does with jobs, from the shell, on a running system: files, arrays, retries, control."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from remuda.cli.app import root
from tests.database import fresh_database
from tests.integration.terminal import on_terminal
from tests.invariants import broken
from tests.system import System, eventually, running_system


@dataclass
class Shell:
    """A person's shell, in a folder of its own."""

    system: System
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """That of the system, with a plain shell."""
        return {**self.system.environment, "SHELL": "/bin/sh", "PS1": "$ ", "TERM": "dumb"}

    def remuda(self, *words: str, code: int = 0) -> str:
        """Run a command in this process; it must exit with `code`. Return its stdout, or all of it."""
        with contextlib.chdir(self.folder):
            done = CliRunner().invoke(root, list(words), env=self.environment)
        assert done.exit_code == code, f"{words}: {done.exit_code}: {done.output}"
        assert "unexpected" not in done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.output

    def records(self, *words: str) -> list[dict[str, Any]]:
        """Return what a command says with --json."""
        found: list[dict[str, Any]] = json.loads(self.remuda(*words, "--json"))
        return found

    def state(self, job: str) -> str:
        """Return a job's state."""
        found: str = self.system.query(f"SELECT state FROM jobs WHERE id = {int(job)}")[0]["state"]
        return found


@pytest.fixture(scope="module")
def system(
    tmp_path_factory: pytest.TempPathFactory, server_url: str, template: str
) -> Iterator[System]:
    """One system for all of them: jobs of one test do not concern those of another."""
    folder = tmp_path_factory.mktemp("system")
    with (
        fresh_database(server_url, template) as url,
        running_system(folder, database_url=url) as running,
    ):
        shell = Shell(running, folder)
        shell.remuda("pool", "create", "sim", "--slots-per-vm", "4", "--heartbeat", "1s")
        yield running
        assert broken(running.query) == {}


@pytest.fixture
def shell(system: System, tmp_path: Path) -> Shell:
    """A shell in an empty folder."""
    return Shell(system, tmp_path)


def test_files_by_pattern_and_whatever_is_left(shell: Shell) -> None:
    """Inputs by glob, folder and URL, programs executable; all that is left comes back."""
    data = shell.folder / "data"
    (data / "sub").mkdir(parents=True)
    for name in ("a.csv", "b.csv", ".hidden", "sub/c.csv"):
        (data / name).write_text(name)
    tool = shell.folder / "tool"
    tool.write_text('#!/bin/sh\nmkdir -p out/deep; cat "$@" > out/deep/all; cp "$0" out/tool\n')
    tool.chmod(0o755)
    (shell.folder / "stray").symlink_to("/etc")
    line = ("run", "--pool", "sim", "--input", "tool", "--input", "in=data/**/*.csv")
    url = f"--input=by/url={(data / 'b.csv').as_uri()}"
    told = shell.remuda(
        *line, url, "--output", "**", "--output-dir", "left", "--", "./tool",
        "in/a.csv", "in/sub/c.csv", "by/url",
    )  # fmt: skip
    assert told == ""
    left = shell.folder / "left"
    found = sorted(str(p.relative_to(left)) for p in left.rglob("*") if p.is_file())
    assert found == ["out/deep/all", "out/tool"]
    assert (left / "out/deep/all").read_text() == "a.csvsub/c.csvb.csv"
    assert os.access(left / "out/tool", os.X_OK)
    again = (*line, "--output", "out/tool=tool", "--output-dir", "left/out", "--no-overwrite")
    assert "already there" in shell.remuda(*again, "--", "./tool", code=125)
    for wrong in ("stray/", "nothing/*.csv", "../x=tool", "/x=tool", "http://me:pw@host/x"):
        said = shell.remuda("run", "--pool", "sim", "--input", wrong, "--", "true", code=125)
        assert "remuda: error: " in said
        assert "me:pw" not in said


def test_jobs_that_wait_for_each_other(shell: Shell) -> None:
    """A file of jobs: each runs or ends as its conditions say, the culprit is named."""
    lines = [
        {"name": "prep", "command": ["true"]},
        {"name": "fit", "command": "sh -c 'exit 3'", "after": ["prep"]},
        {
            "name": "mourn",
            "command": ["true"],
            "after": [{"target": "fit", "condition": "failure"}],
        },
        {"name": "plot", "command": ["true"], "after": "fit"},
        {"name": "report", "command": ["true"], "after": ["plot", "prep"]},
    ]
    file = shell.folder / "jobs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = shell.remuda("job", "submit-dag", "jobs.jsonl", "--pool", "sim")
    array = re.fullmatch(r"array (\d+): jobs \d+\.\.\d+\n", told)
    assert array is not None
    shell.remuda("array", "wait", array[1], "--timeout", "60", code=1)
    ends = {job["name"]: job for job in shell.records("job", "list", "--array", array[1])}
    reasons = {name: job["reason"] for name, job in ends.items()}
    assert reasons == {
        "prep": "OK", "fit": "NONZERO", "mourn": "OK", "plot": "DEPENDENCY", "report": "DEPENDENCY",
    }  # fmt: skip
    assert "'fit' ended NONZERO (exit code 3)" in ends["report"]["message"]
    assert "not met" in shell.remuda("job", "show", str(ends["report"]["id"]))
    before = shell.system.query("SELECT count(*) AS n FROM jobs")
    (shell.folder / "circle.json").write_text(
        json.dumps([{"name": n, "command": ["x"], "after": [m]} for n, m in ("ab", "ba")])
    )
    (shell.folder / "odd.json").write_bytes(b"\xff\xfe[")
    (shell.folder / "deep.json").write_text("[" * 100_000)
    for name, said in (("circle", "circle"), ("odd", "UTF-8"), ("deep", "neither a JSON list")):
        assert said in shell.remuda("job", "submit-dag", f"{name}.json", code=2)
    assert shell.system.query("SELECT count(*) AS n FROM jobs") == before


def test_an_array_from_rows_with_a_failure_run_again(shell: Shell) -> None:
    """A job a row, so many at once; only what failed runs again; some are cancelled by tag."""
    (shell.folder / "rows.csv").write_text("seed,word\n1,one\n2,two words\n3,three\n")
    cured = shell.folder / "cured"
    script = f"echo {{seed}} '{{word}}' > r.txt; test {{seed}} != 2 || test -e {cured}"
    told = shell.remuda(
        "job", "submit", "--pool", "sim", "--array-from", "rows.csv", "--max-running", "1",
        "--output", "r.txt={seed}.txt", "--", "sh", "-c", script,
    )  # fmt: skip
    array = told.split()[1].rstrip(":")
    words = [sys.executable, "-m", "remuda", "array", "wait", array]
    assert on_terminal(words, shell.environment, "", wanted=["remuda: 1 job failed"]) == 1
    overlap = """SELECT count(*) AS n FROM attempts a JOIN jobs j ON j.id = a.job_id
                 JOIN attempts b ON b.id <> a.id AND b.started_at < a.ended_at
                   AND b.ended_at > a.started_at JOIN jobs k ON k.id = b.job_id
                 WHERE j.array_id = {0} AND k.array_id = {0}"""
    assert shell.system.query(overlap.format(int(array)))[0]["n"] == 0
    cured.touch()
    again = shell.remuda("array", "resubmit", array)
    assert again.endswith(": 1 job\n")
    number = again.split()[1].rstrip(":")
    shell.remuda("array", "wait", number, "--timeout", "60")
    shell.remuda("job", "results", "--array", number, "--to", "res")
    assert (shell.folder / "res" / "2.txt").read_text() == "2 two words\n"
    tagged = ("job", "submit", "--pool", "sim", "--tag", "night")
    first = shell.remuda(*tagged, "--tag", "odd", "--", "sleep", "300").strip()
    second = shell.remuda(*tagged, "--", "sleep", "300").strip()
    assert [
        job["id"] for job in shell.records("job", "list", "--tag", "night", "--tag", "odd")
    ] == [int(first)]
    assert "would cancel 2 jobs" in shell.remuda("job", "cancel", "--tag", "night", "--dry-run")
    shell.remuda("job", "cancel", "--tag", "odd", "--yes")
    shell.remuda("job", "wait", first, "--timeout", "30", code=1)
    assert shell.state(second) != "TERMINATED"
    shell.remuda("job", "cancel", "--tag", "night", "--yes")
    shell.remuda("job", "wait", second, "--timeout", "30", code=1)


def test_a_running_job_is_looked_into_and_held(shell: Shell) -> None:
    """Suspended, its file stands still; resumed, it grows; a shell on a terminal stands in it."""
    script = "while :; do echo line >> log.txt; sleep 0.02; done"
    job = shell.remuda(
        "job", "submit", "--pool", "sim", "--walltime", "90s", "--", "sh", "-c", script
    ).strip()

    def log() -> str:
        return shell.remuda("job", "peek", job, "log.txt")

    eventually("it runs", lambda: shell.state(job) == "RUNNING")
    eventually("it writes", lambda: "log.txt" in shell.remuda("job", "files", job))
    assert shell.remuda("job", "suspend", job) == "suspended 1 job\n"
    assert shell.state(job) == "STOPPED"
    still = log()
    assert log() == still
    shell.remuda("job", "resume", job)
    eventually("it goes on", lambda: len(log()) > len(still))
    assert shell.remuda("job", "peek", job, "log.txt", "--size", "5") == "line\n"
    assert "no file" in shell.remuda("job", "peek", job, "../../../etc/passwd", code=1)
    assert "2m" in shell.remuda("job", "extend", job, "--by", "30s")
    assert shell.remuda("job", "shell", job, "--", "sh", "-c", "exit 7", code=7) == ""
    words = [sys.executable, "-m", "remuda", "job", "shell", job]
    typed = "echo job=$REMUDA_JOB_ID; ls; exit 5\n"
    wanted = [f"job={job}", "log.txt"]
    assert on_terminal(words, shell.environment, typed, wanted=wanted) == 5
    shell.remuda("job", "signal", job, "USR1")
    shell.remuda("job", "wait", job, "--timeout", "30", code=1)
    assert shell.records("job", "show", job)[0]["signal"] == 10
    assert "has ended" in shell.remuda("job", "shell", job, "--", "true", code=1)


def test_more_memory_after_too_little(shell: Shell) -> None:
    """A policy from a file: after OUT_OF_MEMORY it has more, soon; wrong ones are refused."""
    (shell.folder / "policy.json").write_text(
        json.dumps({"max_retries": 3, "delay_s": 0.1, "jitter": 0, "memory_factor": 8})
    )
    hungry = "x = bytearray(150 << 20); print(len(x))"
    words = ("--pool", "sim", "--memory", "64M", "--retry-policy", "policy.json")
    told = shell.remuda(
        "run", *words, "--", shutil.which("python3") or sys.executable, "-c", hungry
    )
    assert told == f"{150 << 20}\n"
    job = shell.records("job", "list", "--limit", "1")[0]
    assert (job["reason"], job["attempts"]) == ("OK", 2)
    assert job["memory_bytes"] == 512 << 20
    tries = shell.records("job", "show", str(job["id"]))[0]["attempts"]
    assert job["peak_memory_bytes"] >= 150 << 20
    assert job["io_write_bytes"] is not None
    assert [t["reason"] for t in tries] == ["OUT_OF_MEMORY", "OK"]
    for wrong in ("none.json", '{"max_retries": -1}', '{"tries": 1}', '{"delay_s": NaN}', "{"):
        said = shell.remuda("job", "submit", "--retry-policy", wrong, "--", "true", code=2)
        assert "--retry-policy" in said
    both = ("--retry-policy", '{"max_retries": 1}', "--retries", "1")
    assert "one of" in shell.remuda("job", "submit", *both, "--", "true", code=2)
