"""What can be done to a job while it runs: suspend it, extend it, list its files, look inside."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remuda.workers.onvm import requests
from remuda.workers.onvm.processes import describe_process
from tests.unit.vm import DEADLINE_S, Line, Vm, a_vm, job, output, wait_dead, wait_until

COUNT = "import time\nwhile True: print('x', end='', flush=True); time.sleep(0.005)"


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    yield from a_vm(tmp_path / "vm")


@pytest.fixture
def line(vm: Vm) -> Line:
    return vm.serve(2).line()


def written(line: Line, attempt: int) -> int:
    size: int = line.ask("peek", a=attempt, file="stdout")["size"]
    return size


def states(line: Line) -> list[tuple[int, bool]]:
    return [(m["a"], m["suspended"]) for m in line.pushed if m["push"] == "state"]


@pytest.mark.parametrize("mem", [0, 256 << 20], ids=["signals", "own group"])
def test_a_suspended_job_stands_still_with_all_it_started(line: Line, mem: int) -> None:
    script = f'env -i setsid /usr/bin/env python3 -c "{COUNT}" & python3 -c "{COUNT}"'
    line.start(job(1, "sh", "-c", script, mem=mem))
    wait_until(lambda: written(line, 1) > 10, "both write")
    assert line.ask("suspend", a=1)["suspended"]
    quiet = _settled(line)
    assert line.ask("suspend", a=1)["suspended"]
    assert line.ask("status")["suspended"] == [1]
    line.ask("resume", a=1)
    wait_until(lambda: written(line, 1) > quiet + 10, "they go on")
    answer = line.ask("resume", a=1)
    assert not answer["suspended"]
    assert answer["stopped_s"] > 0
    line.ask("suspend", a=1)
    line.ask("cancel", a=[1], grace=10)
    entry = line.exit(1)
    assert (entry["why"], entry["sig"]) == ("CANCELLED", 15)
    assert states(line) == [(1, True), (1, False), (1, True), (1, False)]


def in_time(line: Line, spec: dict[str, Any], do: str, **fields: Any) -> int:
    """Ask something of a running job before its short walltime is over; return its attempt.

    On a busy machine a job may have ended before it is asked of: then of the next.
    """
    for attempt in range(spec["a"], spec["a"] + 100):
        line.start({**spec, "a": attempt, "j": attempt})
        line.started(attempt)
        if line.ask(do, a=attempt, **fields)["ok"]:
            return attempt
    raise AssertionError(f"{do} was never in time")


def _settled(line: Line) -> int:
    """Wait until nothing more comes, for longer than the writers ever pause."""
    same, last = 0, -1
    while same < 100:  # looks, each of a round trip; the heartbeat goes on meanwhile
        size = written(line, 1)
        same, last = (same + 1, last) if size == last else (0, size)
    beats = sum(m["push"] == "beat" for m in line.pushed)
    wait_until(
        lambda: line.ask("status") and sum(m["push"] == "beat" for m in line.pushed) > beats + 1,
        "beats",
    )
    assert written(line, 1) == last
    return last


def test_the_clock_stands_still_while_suspended(line: Line) -> None:
    a = in_time(line, job(1, "sleep", "1000", wall=0.4), "suspend")
    wait_until(lambda: line.ask("suspend", a=a)["stopped_s"] > 0.6, "longer than its walltime")
    assert line.ask("status")["running"][0][0] == a
    line.ask("resume", a=a)
    entry = line.exit(a)
    assert entry["why"] == "WALLTIME"
    assert entry["x"] - entry["s"] > 1.0


def test_a_suspended_job_keeps_what_it_holds(line: Line) -> None:
    line.start(job(1, "sleep", "1000", cores=2), job(2, "true"))
    line.started(1)
    line.ask("suspend", a=1)
    assert line.ask("status")["queued"] == [2]
    line.ask("cancel", a=[1], grace=0)
    assert line.exit(1)["sig"] == 9
    assert line.exit(2)["why"] == "OK"


def test_a_suspended_job_does_not_outlive_its_runner(vm: Vm, line: Line) -> None:
    line.start(job(1, "sleep", "1000", mem=256 << 20), job(2, "sleep", "1000"))
    pids = [line.started(1)["pid"], line.started(2)["pid"]]
    line.ask("suspend", a=1)
    line.ask("suspend", a=2)
    vm.kill()
    again = vm.serve().line()
    wait_dead(*pids)
    assert [again.exit(a)["why"] for a in (1, 2)] == ["LOST", "LOST"]


def test_requests_about_what_does_not_run_are_refused(line: Line) -> None:
    line.start(job(1, "sleep", "1000", cores=2), job(2, "true"))
    line.started(1)
    for ask in ("suspend", "resume"):
        assert line.ask(ask, a=2)["code"] == "BAD"
        assert line.ask(ask, a=99)["code"] == "BAD"
    assert line.ask("extend", a=99, wall=5)["code"] == "BAD"
    for wall in (0, -1, "x", float("inf")):
        assert line.ask("extend", a=1, wall=wall)["code"] == "BAD"
    assert line.ask("files", a=99)["code"] == "NOFILE"


def test_a_walltime_can_be_changed(line: Line) -> None:
    a = in_time(line, job(10, "sh", "-c", "sleep 0.8", wall=0.4), "extend", wall=100)
    line.start(job(2, "sleep", "1000"), job(3, "sleep", "1000", wall=1000))
    assert line.ask("extend", a=3, wall=0.1)["ok"]  # while it waits
    line.started(2)
    assert line.ask("extend", a=2, wall=0.1)["ok"]
    assert (line.exit(2)["why"], line.exit(2)["msg"]) == (
        "WALLTIME",
        "exceeded its walltime of 0.1 s",
    )
    assert line.exit(3)["why"] == "WALLTIME"
    assert line.exit(a)["why"] == "OK"


def test_files_of_a_sandbox(line: Line) -> None:
    make = "mkdir d; echo hi > d/x; : > y; chmod 755 y; ln -s /etc/passwd l; ln -s /etc m; echo up"
    line.start(job(1, "sh", "-c", make + "; sleep 1000", out=[["y", False]]))
    line.wait_output(1)
    answer = line.ask("files", a=1)
    assert answer["more"] is False
    files = {name: (size, stat.S_IMODE(mode)) for name, size, mode, _ in answer["files"]}
    assert files == {"d/x": (3, files["d/x"][1]), "y": (0, 0o755)}
    line.ask("cancel", a=[1], grace=0)
    line.exit(1)
    assert len(line.ask("files", a=1)["files"]) == 2
    line.run(2, "true")
    assert line.ask("files", a=2)["files"] == []


def test_no_list_of_files_is_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "FILES", 5)
    (tmp_path / "d").mkdir()
    for i in range(5):
        (tmp_path / "d" / str(i)).touch()
    assert requests.list_files(str(tmp_path))[1] is False
    (tmp_path / "x").touch()
    files, more = requests.list_files(str(tmp_path))
    assert (len(files), more) == (5, True)


def test_a_shell_in_a_jobs_sandbox(vm: Vm, line: Line) -> None:
    line.start(job(1, "sh", "-c", "touch here; echo up; sleep 1000", env={"MINE": "x y"}, cwd="w"))
    line.wait_output(1)
    words = "pwd; ls; echo $MINE $REMUDA_ATTEMPT_ID\n"

    def shell(attempt: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            vm.command("shell", "--attempt", str(attempt)),
            input=words,
            text=True,
            capture_output=True,
            timeout=DEADLINE_S,
            env={**os.environ, "SHELL": "/bin/sh"},
        )

    done = shell(1)
    assert done.stdout == f"{vm.home}/jobs/1/w\nhere\nx y 1\n"
    line.ask("cancel", a=[1], grace=0)
    line.exit(1)
    assert shell(1).stdout.startswith(f"{vm.home}/jobs/1\nw\n")
    none = shell(7)
    assert (none.returncode, none.stdout) == (1, "")
    assert "attempt 7 has no folder" in none.stderr


# ---- the preparation of a VM


def prepared(line: Line, key: str = "") -> dict[str, Any]:
    while True:
        for message in line.pushed:
            if message["push"] == "prepared" and key in ("", message["key"]):
                return message
        line.read()


def test_a_preparation_runs_once(vm: Vm, line: Line, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    ask = {"c": ["sh", "-c", f"echo $WHO >> {mark}; echo done; exit 3"], "key": "k"}
    first = line.ask("prepare", **ask, env={"WHO": "me"}, timeout=60)
    assert first["ok"]
    end = prepared(line)
    known = {"key": "k", "state": "done", "st": 3, "sig": None, "out": "done\n", "timed_out": False}
    assert {key: end[key] for key in known} == known
    assert line.ask("prepare", **ask)["state"] == "done"
    vm.kill()
    again = vm.serve().line()
    answer = again.ask("prepare", **ask)
    assert {key: answer[key] for key in known} == known
    assert mark.read_text() == "me\n"
    again.ask("prepare", **{**ask, "key": "other"})
    assert prepared(again)["key"] == "other"
    assert mark.read_text() == "me\n\n"


def test_a_preparation_that_takes_too_long_is_ended(vm: Vm, line: Line) -> None:
    for key in map(str, range(100)):
        line.ask("prepare", c=["sh", "-c", "echo on; sleep 1000"], key=key, timeout=0.2)
        end = prepared(line, key)
        assert (end["timed_out"], end["sig"]) == (True, 15)
        if end["out"]:  # on a busy machine it may not have come to write in its time
            break
    assert end["out"] == "on\n"


def test_jobs_run_while_a_preparation_does_but_no_other_preparation(line: Line) -> None:
    line.ask("prepare", c=["sleep", "1000"], key="k", timeout=1000)
    assert line.ask("prepare", c=["true"], key="other")["code"] == "BAD"
    assert line.run(1, "true")["why"] == "OK"
    assert line.ask("prepare", c=["sleep", "1000"], key="k")["state"] == "running"


def test_what_a_preparation_writes_is_cut_to_its_end(line: Line) -> None:
    line.ask("prepare", c=["sh", "-c", "seq 1000000; echo end"], key="k")
    end = prepared(line)
    assert len(end["out"]) == 64 << 10
    assert end["out"].endswith("1000000\nend\n")


def test_a_preparation_that_cannot_start_has_failed(line: Line) -> None:
    line.ask("prepare", c=["no-such-program"], key="k")
    end = prepared(line)
    assert (end["state"], end["st"]) == ("done", 127)
    assert "command not found" in end["out"]
    for bad in ({"c": [], "key": "x"}, {"c": ["a"]}, {"c": "true", "key": "x"}):
        assert line.ask("prepare", **bad)["code"] == "BAD"


def test_a_preparation_cut_short_runs_again(vm: Vm, line: Line, tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/pid; [ -e {tmp_path}/go ] || sleep 1000"
    line.ask("prepare", c=["sh", "-c", script], key="k")
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "it runs")
    pid = int((tmp_path / "pid").read_text())
    vm.kill()
    (tmp_path / "go").touch()
    again = vm.serve().line()
    assert describe_process(pid) is None
    again.ask("prepare", c=["sh", "-c", script], key="k")
    assert prepared(again)["st"] == 0


def test_what_a_runner_says_of_its_vm(line: Line) -> None:
    hello = line.hello
    assert hello["gpus"] >= 0
    assert hello["cgroup"] in ("", "v1", "v2")
    assert hello["disk_bytes"] >= hello["disk_free_bytes"] > 0
    assert hello["cpu_model"]
    assert set(hello["features"]) >= {"suspend", "resume", "extend", "files", "prepare", "signal"}
    assert output(line.run(1, "echo", "still here")) == b"still here\n"
