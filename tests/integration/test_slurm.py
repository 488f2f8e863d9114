"""The Slurm runner over a real cluster: slurmctld, slurmd and munged, one node on the loopback."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.slurmd import CPUS, Slurm, slurm
from tests.unit.vm import Line, Vm, job, output, wait_until

__all__ = ["slurm"]


class SlurmVm(Vm):
    """A login node's home; `cluster` is where its jobs go."""

    cluster: Slurm

    def begin(self, slots: int = 64, **options: Any) -> SlurmVm:
        given = json.dumps({**self.cluster.options, **options})
        self.serve(slots, "--executor", "slurm", "--slurm", given)
        return self

    def has_journaled(self, text: str) -> bool:
        return text in (self.home / "journal").read_text()

    def ids(self) -> set[str]:
        """Return the ids that sbatch gave this home, as far as Slurm knows them."""
        name = (self.home / "slurm" / "name").read_text()
        words = ["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F"]
        return set(self.cluster.ask(*words).split())


@pytest.fixture
def vm(tmp_path: Path, slurm: Slurm) -> Iterator[SlurmVm]:
    vm = SlurmVm(tmp_path / "vm")
    vm.cluster = slurm
    try:
        yield vm
        name = (vm.home / "slurm" / "name").read_text()
    finally:
        vm.close()
    assert not slurm.ask("squeue", "--noheader", f"--name={name}").strip()


def sh(attempt: int, script: str, **fields: Any) -> dict[str, Any]:
    return job(attempt, "/bin/sh", "-c", script, **fields)


def test_every_way_to_end(vm: SlurmVm) -> None:
    line = vm.begin().line()
    steps = {
        "pro": ["sh", "-c", "echo before"],
        "epi": ["sh", "-c", "echo after $REMUDA_EXIT_CODE"],
    }
    jobs = {
        1: sh(1, "echo out; echo err >&2; exit 200"),
        2: sh(2, "exit 143"),
        3: sh(3, "kill -TERM $$"),
        4: sh(4, "kill -KILL $$"),
        5: sh(5, "echo one; echo two >&2", join=True),
        6: sh(6, 'printf "%s|%s|%s" "$A" "$REMUDA_JOB_ID" "${REMUDA_VM_HOME-none}"; pwd; cat',
              env={"A": "x 'y'\nü", "b.c": "1"}, cwd="some/where"),
        7: sh(7, "echo hi", **steps),
        8: sh(8, "exit 3", **steps),
        9: sh(9, "echo never", pro=["sh", "-c", "exit 5"]),
        10: sh(10, "true", epi=["false"]),
        11: job(11, "no-such-command"),
        12: sh(12, "echo data > f; mkdir d; echo x > d/x", out=[["f", False], ["d/", False]]),
        13: sh(13, "true", out=[["f", False]]),
        14: sh(14, "seq 200000"),
        15: job(15, "a=b"),
        16: sh(16, "seq 1000000", limit=200_000),
        17: sh(17, "rm -rf $PWD"),
    }  # fmt: skip
    line.start(*jobs.values())
    ends = {a: line.exit(a) for a in jobs}
    how = {a: (e["why"], e["st"], e["sig"]) for a, e in ends.items()}
    assert how == {
        1: ("NONZERO", 200, None),
        2: ("NONZERO", 143, None),
        3: ("SIGNALLED", None, 15),
        4: ("SIGNALLED", None, 9),
        **dict.fromkeys((5, 6, 7, 12, 14, 16, 17), ("OK", 0, None)),
        8: ("NONZERO", 3, None),
        9: ("NONZERO", 5, None),
        10: ("NONZERO", 1, None),
        11: ("NONZERO", 127, None),
        13: ("STAGING", 0, None),
        15: ("NONZERO", 127, None),
    }
    assert (output(ends[1]), output(ends[1], "er")) == (b"out\n", b"err\n")
    assert output(ends[5]) == b"one\ntwo\n"
    assert output(ends[6]).decode() == f"x 'y'\nü|6|none{vm.home}/jobs/6/some/where\n"
    assert output(ends[7]) == b"before\nhi\nafter 0\n"
    assert output(ends[8]) == b"before\nafter 3\n"
    assert ends[9]["msg"] == "the prologue failed: exit code 5"
    assert ends[10]["msg"] == "the epilogue failed: exit code 1"
    assert ends[12]["f"] == {"f": 5, "d/x": 2}
    assert line.whole(14, "stdout").splitlines()[-1] == b"200000"
    assert b"the middle of 6888896 bytes was cut out" in line.whole(16, "stdout")
    assert all(e["rss"] > 0 and 0 < e["x"] - e["s"] < 20 for e in ends.values())
    assert len(vm.ids()) == 1  # they were one array
    line.ask("free", a=list(jobs))
    vm.wait_boxes()
    wait_until(lambda: os.listdir(vm.home / "slurm" / "live") == [], "the claims are gone")


def test_attempts_of_a_shape_are_an_array_and_impossible_ones_fail_alone(vm: SlurmVm) -> None:
    line = vm.begin(2 * CPUS).line()
    shapes = [{}, {"cores": 2}, {"mem": 100 << 20}, {"wall": 120}]
    jobs = [sh(a, "echo $SLURM_CPUS_PER_TASK $SLURM_MEM_PER_NODE", **shapes[a % 4])
            for a in range(1, 21)]  # fmt: skip
    line.start(*jobs, job(30, "true", cores=CPUS + 1), job(31, "true", mem=1 << 46))
    assert {line.exit(a)["why"] for a in range(1, 21)} == {"OK"}
    assert output(line.exit(1)) == b"2\n"
    assert output(line.exit(2)) == b"1 100\n"
    for a, complaint in ((30, "More processors"), (31, "Memory specification")):
        assert (line.exit(a)["why"], line.exit(a)["started"]) == ("SUBMISSION", False)
        assert complaint in line.exit(a)["msg"]
    assert len(vm.ids()) in (4, 5)  # of a refused one Slurm may keep a record


def test_a_partition_that_is_not_there(vm: SlurmVm) -> None:
    line = vm.begin(partition="nope").line()
    end = line.run(1, "true")
    assert (end["why"], "invalid partition" in end["msg"].lower()) == ("SUBMISSION", True)


def test_arrays_longer_than_slurm_takes_are_cut(vm: SlurmVm) -> None:
    line = vm.begin(1000, partition="shut").line()  # MaxArraySize is 501
    line.start(*(job(a, "true") for a in range(1, 701)))
    found = wait_until(lambda: len(vm.ids()) > 1 and vm.ids(), "it was cut")
    assert len(found) == 2
    assert sorted(line.ask("recall", a=list(range(1, 701)))["recalled"]) == list(range(1, 701))
    wait_until(lambda: not vm.cluster.ask("squeue", "-h").strip(), "they are cancelled")


def test_cancel_walltime_and_recall(vm: SlurmVm) -> None:
    line = vm.begin(3 * CPUS).line()
    line.start(job(1, "sleep", "100"), job(2, "sleep", "100", wall=1), job(3, "sleep", "100"),
               sh(5, "trap 'exit 0' TERM; echo; while :; do sleep 0.05; done"))  # fmt: skip
    for a in (1, 2, 3, 5):
        line.started(a)
    line.wait_output(5)
    line.start(job(6, "sleep", "100", cores=CPUS), job(7, "sleep", "100", cores=CPUS))
    wait_until(lambda: len(vm.ids()) == 3, "they are in the queue")
    assert line.ask("recall", a=[1, 7])["recalled"] == [7]
    assert line.ask("cancel", a=[1, 5, 6], grace=20)["unknown"] == []
    assert (line.exit(6)["why"], line.exit(6)["started"]) == ("CANCELLED", False)
    vm.cluster.ask("scancel", str(line.started(3)["pid"]), *vm_names(vm, line, 3))
    ends = {a: line.exit(a) for a in (1, 2, 3, 5)}
    assert {a: (e["why"], e["sig"], e["st"]) for a, e in ends.items()} == {
        1: ("CANCELLED", 15, None),
        2: ("WALLTIME", 15, None),
        3: ("CANCELLED", 15, None),
        5: ("OK", None, 0),  # a cancellation that came too late to matter
    }
    assert "walltime of 1 s" in ends[2]["msg"]


def vm_names(vm: SlurmVm, line: Line, attempt: int) -> list[str]:
    """Return what scancel calls an attempt."""
    return [os.readlink(vm.home / "slurm" / "live" / f"{attempt}.c").split(" ")[1]]


def test_jobs_outlive_the_runner(vm: SlurmVm, tmp_path: Path) -> None:
    line = vm.begin().line()
    go = tmp_path / "go"
    script = f"echo begun; until [ -e '{go}' ]; do sleep 0.05; done; echo done >> '{tmp_path}/$1'"
    line.start(sh(1, script.replace("$1", "one")), sh(2, script.replace("$1", "two")))
    line.started(1), line.started(2)
    line.start(job(3, "sh", "-c", f"echo x >> '{tmp_path}/three'", cores=CPUS))
    wait_until(lambda: len(vm.ids()) == 2, "the third is in the queue")
    wait_until(lambda: len(list((vm.home / "slurm").glob("b-*/id"))) == 2, "it is known")
    seen = max(e["n"] for e in line.entries)
    vm.kill()
    go.touch()
    vm.begin()
    line = vm.line(since=seen)
    assert [line.exit(a)["why"] for a in (1, 2, 3)] == ["OK", "OK", "OK"]
    assert (output(line.exit(1)), output(line.exit(3))) == (b"begun\n", b"")
    assert 0 < line.exit(1)["x"] - line.exit(1)["s"] < 60
    for name in ("one", "two", "three"):
        assert (tmp_path / name).read_text().count("\n") == 1
    assert line.start(job(1, "true")) == {"1": "exited"}


def test_a_runner_killed_while_it_submits(vm: SlurmVm, tmp_path: Path) -> None:
    line = vm.begin().line()
    mark = tmp_path / "mark"
    for round_ in range(4):  # the kill finds it before, in, or after sbatch
        ids = range(10 * round_ + 1, 10 * round_ + 6)
        jobs = [sh(a, f"echo {a} >> '{mark}'") for a in ids]
        line.post("start", floor=0, jobs=jobs)
        if round_:
            heard = f'"a":{ids[-1]},'
            wait_until(partial(vm.has_journaled, heard), "it heard")
        if round_ > 1:
            wait_until(lambda: list((vm.home / "slurm").glob("b-*")), "it is handed over")
        vm.kill()
        vm.begin()
        line = vm.line()
        line.start(*jobs)
        ends = [line.exit(a) for a in ids]
        assert {(e["why"], e["started"]) for e in ends} <= {("OK", True), ("LOST", False)}
        begun = [e["a"] for e in ends if e["started"]]
        lines = mark.read_text().split() if mark.exists() else []
        assert sorted(int(n) for n in lines if int(n) in ids) == begun


def test_an_sbatch_without_an_answer_is_not_repeated(vm: SlurmVm, tmp_path: Path) -> None:
    line = vm.begin().line()
    line.start(sh(1, "echo begun; sleep 1; echo ended"))
    line.started(1)
    controller = vm.cluster.daemons["slurmctld"].pid
    os.kill(controller, signal.SIGSTOP)  # it has what it is asked, and does it when it goes on
    try:
        line.start(sh(2, f"echo x >> '{tmp_path}/mark'"))
        assert output(line.exit(1)) == b"begun\nended\n"  # of this Slurm need not tell
        said = wait_until(lambda: (vm.home / "runner.log").read_text(), "the failure is logged")
    finally:
        os.kill(controller, signal.SIGCONT)
    assert "sbatch: error: Batch job submission failed: Socket timed out" in said
    assert line.exit(2)["why"] == "OK"
    wait_until(lambda: not list((vm.home / "slurm").glob("b-*")), "Slurm was heard again")
    assert len(vm.ids()) == 2
    assert (tmp_path / "mark").read_text() == "x\n"


def test_looking_on_signalling_pausing_and_extending(vm: SlurmVm) -> None:
    line = vm.begin().line()
    count = "n=0; trap 'echo usr1' USR1; while :; do n=$((n+1)); echo $n; sleep 0.05; done"
    line.start(sh(1, count, wall=50, follow=True), sh(2, "echo $$; sleep 100"))
    line.wait_output(1)
    wait_until(lambda: line.ask("peek", a=1, file="stdout")["size"] > 10, "it counts")
    assert any(p["push"] == "output" for p in line.pushed)
    assert line.ask("signal", a=1, signal=int(signal.SIGUSR1))["ok"]
    wait_until(lambda: b"usr1" in line.whole(1, "stdout"), "it heard")
    assert line.ask("suspend", a=1)["suspended"]
    name = vm_names(vm, line, 1)[0]
    vm.cluster.wait("it is stopped", "squeue", "-h", "-j", name, "-o", "%T", says="STOPPED")
    size = line.ask("peek", a=1, file="stdout")["size"]
    assert line.ask("peek", a=1, file="stdout")["size"] == size
    assert not line.ask("resume", a=1)["suspended"]
    wait_until(lambda: line.ask("peek", a=1, file="stdout")["size"] > size, "it goes on")
    assert line.ask("extend", a=1, wall=55)["ok"]  # within the minute Slurm counts in
    assert line.ask("extend", a=1, wall=600)["ok"]  # who runs the tests is Slurm's operator
    assert "TimeLimit=00:11:00" in vm.cluster.ask("scontrol", "show", "job", name)
    assert line.ask("extend", a=9, wall=6)["code"] == "BAD"
    assert line.ask("status")["queued"] == []


def test_a_vm_that_ends_takes_its_jobs_with_it(vm: SlurmVm) -> None:
    line = vm.begin().line()
    line.start(job(1, "sleep", "1000"))
    line.started(1)
    line.start(job(2, "sleep", "1000", cores=CPUS))
    wait_until(lambda: len(vm.ids()) == 2, "the second is in the queue")
    assert vm.call("stop").returncode == 0
    assert not vm.cluster.ask("squeue", "-h").strip()


def test_nothing_is_lost_while_the_controller_is_dead(vm: SlurmVm, tmp_path: Path) -> None:
    line = vm.begin().line()
    vm.cluster.stop("slurmctld")
    line.start(sh(1, f"echo x >> '{tmp_path}/mark'"))
    said = wait_until(lambda: (vm.home / "runner.log").read_text(), "the failure is logged")
    assert "Unable to contact slurm controller" in said
    vm.cluster.start("slurmctld")
    assert line.exit(1)["why"] == "OK"
    assert (tmp_path / "mark").read_text() == "x\n"
