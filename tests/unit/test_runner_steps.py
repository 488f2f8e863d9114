"""An attempt's steps (prologue, command, epilogue), its directory, and the time it has."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda.workers.onvm import marks
from remuda.workers.onvm.cgroups import noted
from remuda.workers.onvm.processes import describe_process
from tests.unit.vm import Line, Vm, a_vm, job, output, wait_dead, wait_until

SH = ("/bin/sh", "-c")
# Each leaves the job's group and session; all but the first forget their environment too.
RUNAWAYS = [
    "setsid sleep 1000 &",
    "env -i setsid sleep 1000 &",
    "env -i setsid -f sleep 1000;",
    "env -i setsid -f sh -c 'setsid -f sleep 1000 < /dev/null > /dev/null 2>&1; sleep 1000';",
]


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    yield from a_vm(tmp_path / "vm")


@pytest.fixture
def line(vm: Vm) -> Line:
    return vm.serve(4).line()


def marked(vm: Vm) -> list[int]:
    """Return the live processes of a VM's jobs, wherever they went."""
    own = marks.mark(str(vm.home))
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [
        pid
        for pid in pids
        if marks.same_home(marks.mark_of(pid), own) and describe_process(pid) and pid != vm.pid
    ]


def test_steps_run_one_after_the_other(line: Line) -> None:
    entry = line.sh(
        1,
        "echo run $A; pwd > where; exit 4",
        pro=[*SH, "echo pro $A; touch made"],
        epi=[*SH, 'ls; echo "epi $REMUDA_EXIT_CODE,$REMUDA_SIGNAL"; exit 1'],
        env={"A": "a"},
        out=[["where", False]],
    )
    assert output(entry) == b"pro a\nrun a\nmade\nwhere\nepi 4,\n"
    assert (entry["why"], entry["st"], entry.get("msg")) == ("NONZERO", 4, None)
    assert entry["f"].keys() == {"where"}
    assert [e["t"] for e in line.entries if e["a"] == 1] == ["start", "exit"]
    killed = line.sh(2, "kill -9 $$", epi=[*SH, 'echo "$REMUDA_EXIT_CODE,$REMUDA_SIGNAL"'])
    assert (killed["why"], killed["sig"], output(killed)) == ("SIGNALLED", 9, b",9\n")


@pytest.mark.parametrize(
    ("pro", "epi", "st", "sig", "why", "message"),
    [
        ("exit 3", "echo epi", 3, None, "NONZERO", "the prologue failed: exit code 3"),
        ("kill -9 $$", "", None, 9, "SIGNALLED", "the prologue failed: signal 9"),
        ("", "exit 5", 5, None, "NONZERO", "the epilogue failed: exit code 5"),
        ("", "kill -9 $$", 137, None, "NONZERO", "the epilogue failed: signal 9"),
    ],
)
def test_a_step_that_fails_is_named(
    line: Line, pro: str, epi: str, st: int | None, sig: int | None, why: str, message: str
) -> None:
    steps = {key: [*SH, text] for key, text in (("pro", pro), ("epi", epi)) if text}
    entry = line.sh(1, "echo ran", **steps)
    assert (entry["st"], entry["sig"], entry["why"], entry["msg"]) == (st, sig, why, message)
    assert output(entry) == (b"" if pro else b"ran\n")


def test_a_step_that_is_not_there_is_named(line: Line) -> None:
    first = line.run(1, "true", pro=["no-such-program"])
    assert (first["st"], first["started"]) == (127, False)
    assert first["msg"].startswith("the prologue: command not found")
    second = line.run(2, "no-such-program", pro=["true"], epi=[*SH, "echo $REMUDA_EXIT_CODE"])
    assert (second["st"], second["started"], output(second)) == (127, True, b"127\n")
    assert "no-such-program" in second["msg"]
    third = line.run(3, "true", epi=["no-such-program"])
    assert (third["st"], third["why"]) == (127, "NONZERO")
    assert third["msg"].startswith("the epilogue: ")


def test_a_daemon_of_the_prologue_lives_until_the_end(vm: Vm, line: Line) -> None:
    line.start(
        job(
            1,
            *SH,
            "cat pid; sleep 1000",
            pro=[
                *SH,
                "setsid -f sh -c 'echo $$ > pid; exec sleep 1000'; until [ -s pid ]; do sleep 0.01; done",
            ],
        )
    )
    line.wait_output(1)
    pid = int(line.whole(1, "stdout"))
    assert describe_process(pid)
    line.ask("cancel", a=[1], grace=0)
    assert line.exit(1)["why"] == "CANCELLED"
    wait_dead(pid)


def test_the_walltime_is_for_all_steps(vm: Vm, line: Line) -> None:
    for a, steps in enumerate(
        (
            {"pro": ["sleep", "1000"], "c": ["true"]},
            {"pro": ["true"], "c": ["sleep", "1000"]},
            {"c": ["true"], "epi": ["sleep", "1000"]},
        ),
        1,
    ):
        line.start({**job(a, wall=0.2), **steps})
    for a in (1, 2, 3):
        entry = line.exit(a)
        assert (entry["why"], entry["msg"]) == ("WALLTIME", "exceeded its walltime of 0.2 s")
    in_grace = line.sh(4, "sleep 1000", wall=0.2, epi=[*SH, "echo tidied $REMUDA_SIGNAL"])
    assert (in_grace["why"], output(in_grace)) == ("WALLTIME", b"tidied 15\n")


def test_cancelling_between_steps_starts_no_further_one(line: Line) -> None:
    line.start(
        job(1, *SH, "echo never", pro=[*SH, "trap 'exit 0' TERM; echo up; sleep 1000 & wait"])
    )
    line.wait_output(1)
    line.ask("cancel", a=[1], grace=10)
    assert (line.exit(1)["why"], output(line.exit(1))) == ("CANCELLED", b"up\n")


@pytest.mark.parametrize("runaway", RUNAWAYS)
def test_the_end_takes_along_whatever_ran_away(vm: Vm, line: Line, runaway: str) -> None:
    """While another job runs, too, and though nothing tells whose it is but its mark."""
    line.start(job(9, "sleep", "1000"))
    other = line.started(9)["pid"]
    line.start(job(1, *SH, f"{runaway} echo ready; sleep 1000", wall=1000))
    line.wait_output(1)
    line.ask("extend", a=1, wall=0.01)
    assert line.exit(1)["why"] == "WALLTIME"
    wait_until(lambda: marked(vm) == [other], "only the other job is left")
    line.start(job(2, *SH, f"{runaway} echo ready; sleep 1000"))
    line.wait_output(2)
    line.ask("cancel", a=[2], grace=0)
    wait_until(lambda: marked(vm) == [other], "only the other job is left")


def test_who_ignores_term_is_killed_after_the_grace(vm: Vm, line: Line) -> None:
    stubborn = (
        "trap '' TERM; env -i setsid -f sh -c \"trap '' TERM; sleep 1000\"; echo up; sleep 1000"
    )
    line.start(job(1, *SH, stubborn + "; sleep 1000"))
    line.wait_output(1)
    line.ask("cancel", a=[1], grace=0.2)
    assert (line.exit(1)["why"], line.exit(1)["sig"]) == ("CANCELLED", 9)
    wait_until(lambda: marked(vm) == [], "nothing is left")


def test_a_killed_runner_leaves_no_runaway(vm: Vm, line: Line) -> None:
    line.start(*(job(a, *SH, f"{text} echo up; sleep 1000") for a, text in enumerate(RUNAWAYS, 1)))
    for a in range(1, 5):
        line.wait_output(a)
    assert len(marked(vm)) >= 8
    vm.kill()
    again = vm.serve().line()
    assert marked(vm) == []
    assert [again.exit(a)["why"] for a in range(1, 5)] == ["LOST"] * 4


def test_control_groups_find_who_took_its_mark_off(vm: Vm, line: Line) -> None:
    if not any(Path(folder, "vm").is_dir() for folder in noted(f"{vm.home}/cgroups")):
        pytest.skip("no control group can be made here")
    unmark = """
import os, resource
resource.setrlimit(resource.RLIMIT_RTTIME, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if os.fork() == 0:
    os.setsid()
    print(os.getpid(), flush=True)
    os.execve("/bin/sleep", ["sleep", "1000"], {})
os.wait()
"""
    line.start(job(1, sys.executable, "-I", "-S", "-c", unmark))
    line.wait_output(1)
    pid = int(line.whole(1, "stdout"))
    assert pid not in marked(vm)
    vm.kill()
    vm.serve()
    assert describe_process(pid) is None


def test_a_crash_between_steps_is_a_loss(vm: Vm, line: Line) -> None:
    line.start(job(1, *SH, "echo up; exec env -i sleep 1000", pro=["true"]))
    line.wait_output(1)
    [[_, pid]] = line.ask("status")["running"]
    assert pid != line.started(1)["pid"]
    vm.kill()
    again = vm.serve().line()
    assert again.exit(1)["why"] == "LOST"
    assert describe_process(pid) is None
    assert again.start(job(1, "true")) == {"1": "exited"}


def test_a_directory_to_work_in(vm: Vm, line: Line) -> None:
    entry = line.sh(1, "pwd; touch x", cwd="a/b", out=[["a/b/x", False]])
    assert output(entry).decode() == f"{vm.home}/jobs/1/a/b\n"
    assert entry["f"] == {"a/b/x": 0}
    assert output(line.run(2, "pwd", cwd="c/")).endswith(b"/jobs/2/c\n")
    for a, bad in enumerate(("/tmp", "../x", "a/../..", "a//b", "."), 3):
        entry = line.run(a, "true", cwd=bad)
        assert (entry["why"], entry["started"]) == ("SUBMISSION", False)
    outside = line.sh(
        20, "true", cwd="link", pro=[*SH, f"rm -r ../link; ln -s {vm.home.parent} ../link"]
    )
    assert outside["st"] == 126
    assert "leads out" in outside["msg"]
