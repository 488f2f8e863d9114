"""What keeps a VM honest: checks run on it, the dead-man timer, restarts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remuda.workers.onvm.processes import runner_pid
from tests.unit.vm import Line, Vm, a_vm, job, wait_dead, wait_until

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    yield from a_vm(tmp_path / "vm")


@pytest.fixture
def line(vm: Vm) -> Line:
    return vm.serve(2).line()


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_checks_are_answered_when_they_end(line: Line) -> None:
    """A slow one keeps no other waiting, and no job."""
    slow = line.post("check", c=python(SLEEP), timeout=600)
    quick = line.ask("check", c=python("print('well'); raise SystemExit(3)"), timeout=20)
    assert (quick["st"], quick["out"], quick["timed_out"]) == (3, "well\n", False)
    late = line.ask("check", c=python(SLEEP), timeout=0.5)
    assert (late["timed_out"], late["sig"]) == (True, 9)
    assert line.run(1, "true")["why"] == "OK"
    assert slow not in line.answers


def test_a_check_takes_with_it_what_it_started(line: Line, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c',"
        f" {SLEEP!r}]); open({str(pid)!r}, 'w').write(str(p.pid))"
    )
    assert line.ask("check", c=python(code), timeout=20)["st"] == 0
    wait_dead(int(pid.read_text()))


@pytest.mark.parametrize("command", [["/nowhere/x"], ["/etc/passwd"]])
def test_a_check_that_cannot_start(line: Line, command: list[str]) -> None:
    assert line.ask("check", c=command, timeout=5)["st"] in (126, 127)


@pytest.mark.parametrize(
    "wrong", [{"c": []}, {"c": "x"}, {"c": ["x"], "timeout": -1}, {"c": ["x"], "env": [1]}, {}]
)
def test_wrong_requests_are_refused(line: Line, wrong: dict[str, Any]) -> None:
    assert not line.ask("check", **wrong)["ok"]
    assert not line.ask("configure", dead_man=-1)["ok"]
    assert not line.ask("configure", dead_man=1, command="off")["ok"]
    assert not line.ask("reboot", c=[1])["ok"]
    assert line.ask("check", c=python(""), timeout=20)["st"] == 0


def test_left_alone_it_ends_everything_and_runs_its_command(
    vm: Vm, line: Line, tmp_path: Path
) -> None:
    line.start(job(1, *python(SLEEP)))
    pid = wait_until(lambda: line.ask("status")["running"], "it runs")[0][1]
    marker = tmp_path / "powered-off"
    line.ask("configure", dead_man=1.0, command=["/usr/bin/touch", str(marker)])
    wait_dead(pid)
    wait_until(marker.exists, "its command ran")
    wait_until(lambda: runner_pid(str(vm.home)) == 0, "the runner ended")


def test_as_long_as_somebody_speaks_it_stays(vm: Vm, line: Line) -> None:
    """Its beats tell how long it will wait; a word of a controller begins that anew."""

    def next_left() -> float:
        seen = len(line.pushed)
        while True:
            line.read()
            for message in line.pushed[seen:]:
                if message["push"] == "beat":
                    return float(message["dead_man"])

    line.ask("configure", dead_man=1000, command=[])
    first, second = next_left(), next_left()
    assert second < first < 1000
    # Until a beat comes soon after it: a runner that is kept waiting tells of less.
    wait_until(lambda: line.ask("heard") and next_left() > second, "it begins anew")
    line.ask("configure", dead_man=0)
    assert "dead_man" not in line.ask("status")
    assert runner_pid(str(vm.home))


def test_a_reboot_ends_everything_and_the_next_boot_is_another(
    vm: Vm, line: Line, tmp_path: Path
) -> None:
    line.start(job(1, *python(SLEEP)))
    pid = wait_until(lambda: line.ask("status")["running"], "it runs")[0][1]
    before = line.hello["pid"]
    marker = tmp_path / "restarted"
    line.ask("reboot", c=["/usr/bin/touch", str(marker)])
    wait_dead(pid)
    wait_until(marker.exists, "its command ran")
    again = vm.serve(2).line(watch=True)
    assert again.hello["pid"] != before
    assert again.exit(1)["why"] == "LOST"
