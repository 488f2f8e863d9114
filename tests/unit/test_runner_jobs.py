"""How the runner runs a job: its end, its limits, cancelling it, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remuda.workers.onvm.processes import describe_process
from tests.unit.vm import (
    DEADLINE_S,
    Line,
    Vm,
    a_vm,
    interpreters,
    job,
    output,
    wait_dead,
    wait_until,
)


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    yield from a_vm(tmp_path / "vm")


@pytest.fixture
def line(vm: Vm) -> Line:
    return vm.serve().line()


@pytest.mark.parametrize("python", interpreters().values(), ids=list(interpreters()))
def test_every_python_runs_jobs_stages_files_cancels_and_recovers(
    python: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_text("data")
    for vm in a_vm(tmp_path / "vm", python=python):
        line = vm.serve().line()
        script = "cat in/x; echo error >&2; echo made > out; exit 200"
        entry = line.sh(1, script, out=[["out", False]], **{"in": [["in/x", str(source), 0o644]]})
        assert (entry["st"], entry["why"], entry["f"]) == (200, "NONZERO", {"out": 5})
        assert (output(entry), output(entry, "er")) == (b"data", b"error\n")
        assert line.run(2, "no-such-program")["st"] == 127
        assert line.run(3, "/bin/true")["why"] == "OK"
        line.start(job(4, "sleep", "1000"), job(5, "sleep", "1000"), job(6, "true"))
        line.started(5)
        line.ask("cancel", a=[4], grace=5)
        assert (line.exit(4)["sig"], line.exit(4)["why"]) == (15, "CANCELLED")
        assert line.exit(6)["why"] == "OK"
        assert line.sh(7, "setsid sleep 1000 & head -c 200000 /dev/zero")["os"] == 200000
        assert line.whole(7, "stdout") == bytes(200000)
        newest = line.entries[-1]["n"]
        sleeper = line.started(5)["pid"]
        vm.kill()
        again = vm.serve().line(since=newest)
        assert describe_process(sleeper) is None
        assert again.exit(5)["why"] == "LOST"
        assert again.start(job(5, "sleep", "1000"), job(6, "true")) == {
            "5": "exited",
            "6": "exited",
        }
        assert len(again.entries) == 1


@pytest.mark.parametrize(
    ("script", "st", "sig", "why"),
    [
        ("exit 0", 0, None, "OK"),
        ("exit 200", 200, None, "NONZERO"),
        ("exit 127", 127, None, "NONZERO"),
        ("kill -9 $$", None, 9, "SIGNALLED"),
        ("kill -PIPE $$", None, 13, "SIGNALLED"),
        ("kill -TERM $$", None, 15, "SIGNALLED"),
        ("exec >&- 2>&-; sleep 0.1; exit 3", 3, None, "NONZERO"),
    ],
)
def test_how_a_job_ends(line: Line, script: str, st: int | None, sig: int | None, why: str) -> None:
    entry = line.sh(1, script)
    assert (entry["st"], entry["sig"], entry["why"]) == (st, sig, why)
    assert entry["s"] <= entry["x"]
    assert entry["started"]
    assert "box" not in entry


@pytest.mark.parametrize("name", ["no-such-program", "/no/such/program", "./none", "", "/tmp"])
def test_a_command_that_does_not_exist_is_127(line: Line, name: str) -> None:
    entry = line.run(1, name)
    assert (entry["st"], entry["why"], entry["started"]) == (127, "NONZERO", False)
    assert "command not found" in entry["msg"]
    assert [e["t"] for e in line.entries] == ["exit"]


@pytest.mark.parametrize(("text", "mode"), [("#!/bin/sh\n", 0o644), ("no program", 0o755)])
def test_a_command_that_cannot_be_executed_is_126(
    line: Line, tmp_path: Path, text: str, mode: int
) -> None:
    program = tmp_path / "program"
    program.write_text(text)
    program.chmod(mode)
    entry = line.run(1, str(program))
    assert (entry["st"], entry["why"]) == (126, "NONZERO")
    assert entry["msg"]


@pytest.mark.parametrize(
    "fields",
    [
        {"c": []},
        {"c": "true"},
        {"c": ["true", 1]},
        {"c": ["true", "a\0b"]},
        {"c": ["true", "x" * 3_000_000]},
        {"c": ["true"], "env": {"A=B": "c"}},
        {"c": ["true"], "env": {"A": 1}},
        {"c": ["true"], "env": ["A"]},
        {"c": ["true"], "cores": -1},
        {"c": ["true"], "cores": "many"},
        {"c": ["true"], "cores": 3},
        {"c": ["true"], "mem": -1},
        {"c": ["true"], "mem": 1 << 60},
        {"c": ["true"], "wall": -1},
        {"c": ["true"], "wall": float("nan")},
        {"c": ["true"], "in": ["x"]},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_a_bad_job_is_refused_alone(line: Line, fields: dict[str, Any]) -> None:
    line.start(job(1, "true"), {"a": 2, "j": 2, "e": 1, **fields}, job(3, "true"))
    assert (line.exit(2)["why"], line.exit(2)["started"]) == ("SUBMISSION", False)
    assert line.exit(2)["msg"]
    assert line.exit(1)["why"] == line.exit(3)["why"] == "OK"


@pytest.mark.parametrize(
    "left",
    [
        "sleep 1000 &",
        "setsid sleep 1000 &",
        "env -i setsid sleep 1000 &",
        "setsid sh -c 'setsid sleep 1000 & sleep 1000' &",
        "(trap '' TERM HUP; sleep 1000) &",
    ],
)
def test_what_a_job_leaves_running_is_killed(vm: Vm, line: Line, left: str) -> None:
    entry = line.sh(1, f"{left} echo hi")
    assert (output(entry), entry["why"]) == (b"hi\n", "OK")
    wait_until(lambda: vm.processes() == [vm.pid], "the sleepers are gone")
    children = Path(f"/proc/{vm.pid}/task/{vm.pid}/children")
    wait_until(lambda: children.read_text() == "", "no orphan is left")


def test_a_daemon_of_a_running_job_lives_as_long_as_the_job(vm: Vm, line: Line) -> None:
    pid_file, go = vm.home / "pid", vm.home / "go"
    write = f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}"
    daemon = f"(setsid sh -c '{write}; exec sleep 1000' &)"
    line.start(job(1, "sh", "-c", f"{daemon}; until [ -e {go} ]; do sleep 0.01; done"))
    wait_until(pid_file.exists, "the daemon runs")
    assert line.run(2, "true")["why"] == "OK"  # another job's end must not touch it
    pid = int(pid_file.read_text())
    assert describe_process(pid)
    go.touch()
    assert line.exit(1)["why"] == "OK"
    wait_dead(pid)


def test_what_a_job_sees(vm: Vm, line: Line) -> None:
    entry = line.sh(
        7,
        "env; cat; umask; ulimit -n",
        env={"MINE": "ü x", "REMUDA_VM_HOME": "/"},
        j=5,
        e=3,
        cores=2,
    )
    seen = output(entry).decode().splitlines()
    ids = ["JOB_ID=5", "ATTEMPT_ID=7", "EPOCH=3", "CORES=2", "VM=vm", f"VM_HOME={vm.home}"]
    ids.append(f"RESOURCES={vm.home}/resources")
    assert {f"REMUDA_{text}" for text in ids} == {s for s in seen if s.startswith("REMUDA_")}
    assert "MINE=ü x" in seen
    fds = output(line.sh(8, "ls /proc/self/fd")).split()
    assert fds == [b"0", b"1", b"2", b"3"]  # ls itself opens the last
    ignored = output(line.sh(9, "grep -E 'SigIgn|SigBlk' /proc/self/status"))
    masks = [int(text.split()[1], 16) for text in ignored.splitlines()]
    assert [mask & 0x7FFFFFFF for mask in masks] == [0, 0]  # above are signals of the C library


def test_usage_is_of_the_job(line: Line) -> None:
    busy = "import time\nwhile time.process_time() < 0.2: pass\nx = bytearray(80 << 20)"
    entry = line.run(1, "python3", "-c", busy)
    assert entry["u"] + entry["sy"] >= 0.2
    assert entry["rss"] >= 80 << 20
    assert entry["x"] - entry["s"] >= 0.2


def test_walltime_ends_a_job(vm: Vm, line: Line) -> None:
    entry = line.sh(1, "sleep 1000", wall=0.2)
    assert (entry["why"], entry["sig"]) == ("WALLTIME", 15)
    assert "0.2 s" in entry["msg"]
    assert line.sh(2, "trap 'exit 0' TERM; sleep 1000 & wait", wall=0.2)["why"] == "WALLTIME"
    assert line.sh(3, "sleep 0.01", wall=100)["why"] == "OK"
    wait_until(lambda: vm.processes() == [vm.pid], "the sleepers are gone")


def test_cancelling(vm: Vm, line: Line) -> None:
    stubborn = "trap '' TERM; sleep 1000 & echo ready; wait"
    line.start(
        job(1, "sh", "-c", stubborn),
        job(2, "sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done"),
    )
    line.start(job(3, "true"), job(4, "true"))
    for attempt in (1, 2):
        line.wait_output(attempt)
    assert line.ask("cancel", a=[2, 3, 99], grace=DEADLINE_S)["unknown"] == [99]
    assert line.ask("cancel", a=[1], grace=0.2)["unknown"] == []
    assert (line.exit(3)["why"], line.exit(3)["started"]) == ("CANCELLED", False)
    assert (line.exit(2)["why"], line.exit(2)["st"]) == ("OK", 0)  # it ended well all the same
    assert (line.exit(1)["why"], line.exit(1)["sig"]) == ("CANCELLED", 9)
    assert line.exit(4)["why"] == "OK"
    before = len(line.entries)
    assert line.ask("cancel", a=[1, 2, 3, 4])["unknown"] == []
    line.ask("status")
    assert len(line.entries) == before
    wait_until(lambda: vm.processes() == [vm.pid], "the stubborn one's sleeper is gone")


def test_a_stopped_job_is_cancelled_too(line: Line) -> None:
    line.start(job(1, "sleep", "1000"))
    line.started(1)
    assert line.ask("signal", a=1, signal=19)["ok"]
    line.ask("cancel", a=[1], grace=15)
    assert (line.exit(1)["sig"], line.exit(1)["why"]) == (15, "CANCELLED")


def test_signals_reach_the_job(line: Line) -> None:
    script = "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.01; done"
    line.start(job(1, "sh", "-c", script), job(2, "sleep", "1000"), job(3, "true"))
    line.wait_output(1)
    for bad in (
        {"a": 1, "signal": 0},
        {"a": 1, "signal": 999},
        {"a": 3, "signal": 1},
        {"a": 9, "signal": 1},
    ):
        assert line.ask("signal", **bad)["code"] == "BAD"
    assert line.ask("signal", a=1, signal=10)["ok"]
    assert (line.exit(1)["st"], output(line.exit(1))) == (5, b"ready\ngot\n")
    line.ask("cancel", a=[2], grace=0)


def test_slots_and_memory_are_never_oversubscribed(vm: Vm) -> None:
    line = vm.serve(3, "--memory", str(1000 << 20)).line()
    line.start(
        job(1, "sleep", "1000", cores=2, mem=600 << 20), job(2, "sleep", "1000", mem=500 << 20)
    )
    line.start(job(3, "true"))  # would fit, but the one before it was first
    line.started(1)
    assert line.ask("status")["queued"] == [2, 3]
    line.start(job(4, "true", mem=1001 << 20), job(5, "true", cores=4))
    assert [line.exit(a)["why"] for a in (4, 5)] == ["SUBMISSION", "SUBMISSION"]
    line.ask("cancel", a=[1], grace=0)
    assert line.exit(3)["why"] == "OK"
    assert line.started(2)["n"] < line.started(3)["n"]
    assert line.ask("status")["running"] == [[2, line.started(2)["pid"]]]


def test_thousands_of_queued_jobs(vm: Vm, line: Line) -> None:
    line.start(*(job(a, "true") for a in range(1, 2001)))
    line.ask("cancel", a=list(range(1001, 2001)))
    for a in range(1, 2001):
        assert line.exit(a)["why"] == ("OK" if a <= 1000 else "CANCELLED")
    numbers = [entry["n"] for entry in line.entries]
    assert numbers == sorted(set(numbers))
    assert len(line.entries) == 3000
    assert vm.boxes() == []
