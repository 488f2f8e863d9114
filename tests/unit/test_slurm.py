"""What the Slurm runner makes of Slurm's answers, and of faults no real cluster shows on demand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.errors import BadInput
from remuda.hosts import slurm_of
from remuda.workers.backends.slurm import runner_arguments
from remuda.workers.onvm.job import Job
from remuda.workers.onvm.slurmcalls import (
    ALONE,
    Options,
    indices,
    passing,
    ranges,
    rows_of_sacct,
    rows_of_squeue,
    sbatch,
)
from remuda.workers.onvm.slurmfiles import FileStream, Shared, Status, times
from tests.unit.vm import Vm, a_vm, job, wait_until


def test_rows_are_read_and_junk_is_left_out() -> None:
    text = (
        "12|10|1|RUNNING|None|tok attempts 1-2\nslurm_load_jobs error\n|||\n7|7|N/A|FAILED|x|a|b\n"
    )
    one, other = rows_of_squeue(text)
    assert (one.raw, one.array, one.task, one.state) == (12, 10, 1, "RUNNING")
    assert (other.task, other.comment) == (ALONE, "a|b")
    text = "10_3|14|CANCELLED by 1000|0:15\n10_[4-9]|10|PENDING|0:0\njunk\n9|9|TIMEOUT|0:0\n"
    found = [(row.raw, row.array, row.task, row.state) for row in rows_of_sacct(text)]
    waiting = [(10, 10, task, "PENDING") for task in range(4, 10)]
    assert found == [(14, 10, 3, "CANCELLED"), *waiting, (9, 9, ALONE, "TIMEOUT")]


def test_the_indices_of_what_never_ran() -> None:
    assert indices("[0,2-4%1]") == [0, 2, 3, 4]
    assert indices("0-8:4") == [0, 4, 8]
    assert indices("[1,5-7,...]") == [1, 5, 6, 7]
    assert indices("N/A") == indices("") == []


@given(st.text())
def test_no_answer_breaks_the_parsers(text: str) -> None:
    rows_of_squeue(text)
    rows_of_sacct(text)


@given(st.sets(st.integers(0, 60), min_size=1))
def test_ranges_are_the_indices(some: set[int]) -> None:
    assert indices(ranges(list(some))) == sorted(some)


def test_what_passes_and_what_does_not() -> None:
    for said in (
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
    ):
        assert passing(said, 1)
    for said in ("invalid partition specified: x", "Invalid account or account/partition"):
        assert not passing(said, 1)
    assert passing("", 137)


def test_the_call_of_sbatch() -> None:
    asked = Job(
        {"a": 1, "j": 1, "e": 1, "c": ["x"], "cores": 3, "mem": 1025, "wall": 61, "gpus": 2}
    )
    words = sbatch(asked, "0-4,7", name="n", comment="c", folder="/a%b")
    for word in ("--cpus-per-task=3", "--mem=2K", "--time=3", "--gres=gpu:2", "--array=0-4,7"):
        assert word in words
    assert "--output=/a%%b/log" in words


@pytest.mark.parametrize(
    "wrong",
    [{"slurm": 1}, {"slurm": {"x": 1}}, {"slurm": {"poll_s": 0}}, {"slurm": {"flags": "-N 1"}}],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="slurm"):
        slurm_of(wrong)


def test_settings_become_arguments() -> None:
    assert runner_arguments({"hosts": []}) == []
    given = {"partition": "p", "flags": ["--exclusive"], "poll_s": 3, "gpus": 0}
    words = runner_arguments({"slurm": given})
    assert words[:3] == ["--executor", "slurm", "--slurm"]
    assert Options(json.loads(words[3])).flags == ["--partition=p", "--exclusive"]
    with pytest.raises(ValueError, match="no option x"):
        Options({"x": 1})


def test_times_of_a_shell() -> None:
    assert times("0m0.001s 0m0.002s\n1m2.500s 0m0.250s\n") == (62.5, 0.25)
    assert times("") == (0.0, 0.0)


def test_a_huge_file_keeps_head_and_tail(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"a" * 500_000 + b"b" * 500_000)
    stream = FileStream(str(path), 300_000)
    assert (stream.total, stream.read(499_999, 2)) == (1_000_000, (499_999, b"ab"))
    stream.finish(1000)
    kept = path.read_bytes()
    assert (stream.total, len(kept)) == (1_000_000, 300_000)
    assert (kept[:1], kept[-1:]) == (b"a", b"b")
    assert b"the middle of 1000000 bytes" in kept


class Node:
    """A compute node as the wrapper sees it; `tools` are all the programs it has."""

    def __init__(self, folder: Path) -> None:
        (folder / "jobs").mkdir()
        self.shared, self.folder = Shared(str(folder)), folder
        self.tools = folder / "bin"
        self.tools.mkdir()
        for name in ("sh", "ln", "rm", "mv", "env", "mkdir", "cat", "true"):
            os.symlink(shutil.which(name) or f"/bin/{name}", self.tools / name)

    def run(self, attempt: int, script: str, **fields: Any) -> int:
        asked: Any = Job(job(attempt, "sh", "-c", script, **fields))
        box = self.folder / "jobs" / str(attempt)
        box.mkdir(exist_ok=True)
        asked.folder = str(box)
        asked.out = FileStream(f"{box}.out", 1 << 20)
        asked.err = FileStream(f"{box}.err", 1 << 20)
        (self.folder / "attempt").write_text(self.shared.script(asked, {"A": "1"}))
        env = {"PATH": str(self.tools), "SLURM_JOB_ID": "77"}
        command = ["/bin/sh", self.shared.path + "/wrapper", str(self.folder / "attempt")]
        return subprocess.run(command, env=env, stderr=subprocess.DEVNULL, timeout=20).returncode


def test_the_wrapper_does_without_python(tmp_path: Path) -> None:
    node = Node(tmp_path)
    assert node.run(1, "echo out $A; echo err >&2; exit 7", pro=["true"], epi=["true"]) == 7
    status = Status(node.shared, 1)
    assert (status.part, status.code, status.signal, status.ru_maxrss) == ("command", 7, None, 0)
    assert ((tmp_path / "jobs/1.out").read_text(), (tmp_path / "jobs/1.err").read_text()) == (
        "out 1\n",
        "err\n",
    )
    node.run(2, "kill -TERM $$")
    assert (Status(node.shared, 2).code, Status(node.shared, 2).signal) == (None, 15)
    node.run(3, "exit 200")
    assert (Status(node.shared, 3).code, Status(node.shared, 3).signal) == (200, None)


def test_an_attempt_starts_once_or_never(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for _ in range(3):
        node.run(1, f"echo x >> '{tmp_path}/mark'")
    assert (tmp_path / "mark").read_text() == "x\n"
    assert not node.shared.fence(1)
    assert (node.shared.claim(1).id, node.shared.claim(1).name) == (77, "77")
    assert node.shared.fence(2)
    assert node.shared.fence(2)
    assert node.run(2, f"echo y >> '{tmp_path}/mark'") == 3
    assert (tmp_path / "mark").read_text() == "x\n"


ROW = 'echo "7|7|N/A|$(cat state)|None|$(cat token) x"'


class FakeSlurm(Vm):
    """A login node whose Slurm commands are shell scripts; what they are asked is in `log`."""

    def tool(self, name: str, script: str) -> None:
        folder = self.home.parent / "tools"
        folder.mkdir(exist_ok=True)
        text = f'#!/bin/sh\ncd {self.home.parent}\necho {name} "$@" >> log\n{script}\n'
        (folder / f"{name}.new").write_text(text)
        (folder / f"{name}.new").chmod(0o755)
        (folder / f"{name}.new").rename(folder / name)

    def begin(self) -> FakeSlurm:
        options = {"bin": str(self.home.parent / "tools"), "poll_s": 0.1, "account_grace_s": 3}
        self.serve(8, "--executor", "slurm", "--slurm", json.dumps({**options, "file_grace_s": 1}))
        return self

    def log(self) -> str:
        log = self.home.parent / "log"
        return log.read_text() if log.exists() else ""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeSlurm]:
    for vm in a_vm(tmp_path / "vm"):
        vm.__class__ = FakeSlurm
        assert isinstance(vm, FakeSlurm)
        for name in ("squeue", "sacct", "scancel"):
            vm.tool(name, ":")
        vm.tool("sbatch", "echo 7")
        yield vm
        vm.tool("squeue", ":")


def test_accounts_that_lag_are_waited_for(fake: FakeSlurm) -> None:
    fake.tool("sacct", "echo; echo junk; if [ -e told ]; then echo '7|7|NODE_FAIL|1:0'; fi")
    line = fake.begin().line()
    line.start(job(1, "true"))
    wait_until(lambda: fake.log().count("sacct") > 1, "sacct was asked more than once")
    assert line.ask("status")["queued"] == [1]
    (fake.home.parent / "told").touch()
    end = line.exit(1)
    assert (end["why"], end["started"]) == ("LOST", False)
    assert "NODE_FAIL" in end["msg"]


@pytest.mark.parametrize(
    ("state", "why"),
    [("TIMEOUT", "WALLTIME"), ("OUT_OF_MEMORY", "OUT_OF_MEMORY"), ("PREEMPTED", "LOST")],
)
def test_what_slurm_did_to_a_job_that_had_begun(fake: FakeSlurm, state: str, why: str) -> None:
    fake.tool("squeue", f"if [ -e token ]; then {ROW}; fi")
    (fake.home.parent / "state").write_text("RUNNING")
    line = fake.begin().line()
    line.start(job(1, "true", mem=1 << 20))
    (folder,) = wait_until(lambda: list((fake.home / "slurm").glob("b-*/id")), "it was submitted")
    os.symlink("7 7 node1", fake.home / "slurm" / "live" / "1.c")
    (fake.home.parent / "token").write_text(folder.parent.name[2:])
    line.started(1)
    (fake.home.parent / "state").write_text(state)
    assert line.exit(1)["why"] == why


def test_one_that_nobody_knows_is_lost_in_the_end(fake: FakeSlurm) -> None:
    fake.tool("sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    line = fake.begin().line()
    began = time.monotonic()
    end = line.run(1, "true")
    assert (end["why"], end["started"]) == ("LOST", False)
    assert time.monotonic() - began >= 1.0  # the grace for its status is all there is without them


def test_accounts_that_are_away_are_waited_for(fake: FakeSlurm) -> None:
    fake.tool("sacct", "if [ -e up ]; then echo '7|7|TIMEOUT|0:0'; else echo down >&2; exit 1; fi")
    line = fake.begin().line()
    line.start(job(1, "true"))
    wait_until(lambda: fake.log().count("sacct") > 1, "sacct was asked more than once")
    (fake.home.parent / "up").touch()
    assert line.exit(1)["why"] == "WALLTIME"


def test_an_extension_slurm_does_not_allow_is_refused(fake: FakeSlurm) -> None:
    fake.tool("squeue", f"echo RUNNING > state; if [ -e token ]; then {ROW}; fi")
    fake.tool("scontrol", "echo Access/permission denied for job 7 >&2; exit 1")
    line = fake.begin().line()
    line.start(job(1, "true", wall=60))
    (folder,) = wait_until(lambda: list((fake.home / "slurm").glob("b-*/id")), "it was submitted")
    (fake.home.parent / "token").write_text(folder.parent.name[2:])
    answer = line.ask("extend", a=1, wall=6000)
    assert (answer["code"], "permission denied" in answer["error"]) == ("BAD", True)


def test_no_sbatch_is_said_when_the_runner_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for vm in a_vm(tmp_path / "vm"):
        with pytest.raises(AssertionError, match="there is no sbatch"):
            vm.serve(1, "--executor", "slurm", "--slurm", '{"partition": "x"}')
