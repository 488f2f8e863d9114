"""The Slurm runner over a real cluster with accounting, of which squeue forgets jobs at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_slurm import SlurmVm, sh, vm_names
from tests.slurmd import CPUS
from tests.slurmdbd import AccountedSlurm, accounted
from tests.unit.vm import job, wait_until

__all__ = ["accounted"]

# Kills what would have left its status: its parent's parent.
KILL = "until [ -e '{go}' ]; do sleep 0.02; done; read -r _ _ _ p _ < /proc/$PPID/stat; kill -9 $p"


@pytest.fixture
def vm(tmp_path: Path, accounted: AccountedSlurm) -> Iterator[SlurmVm]:
    vm = SlurmVm(tmp_path / "vm")
    vm.cluster = accounted
    try:
        yield vm
    finally:
        vm.close()


def test_the_accounts_tell_what_squeue_has_forgotten(vm: SlurmVm, tmp_path: Path) -> None:
    line, slurm, go = vm.begin(6 * CPUS, account_grace_s=60).line(), vm.cluster, tmp_path / "go"
    line.start(sh(1, KILL.format(go=go)), job(2, "sleep", "100"), job(3, "sleep", "100"))
    for a in (1, 2, 3):
        line.started(a)
    line.start(*(job(a, "sleep", "100", cores=CPUS) for a in (4, 5, 6)))
    line.start(job(7, "sleep", "100", cores=CPUS, wall=600))
    wait_until(lambda: len(list((vm.home / "slurm").glob("b-*/id"))) == 3, "they are queued")
    whole = {p.parent / "jobs": p.read_text() for p in (vm.home / "slurm").glob("b-*/id")}
    waiting = [number for jobs, number in whole.items() if '"a": 1' not in jobs.read_text()]
    seen = max(entry["n"] for entry in line.entries)
    vm.kill()
    go.touch()
    slurm.ask("scancel", *vm_names(vm, line, 2), *waiting)  # somebody else does
    wait_until(lambda: len(slurm.ask("squeue", "-h").split("\n")) == 2, "one is left")
    slurm.stop("slurmd")
    slurm.ask("scontrol", "update", "nodename=localhost", "state=down", "reason=test")
    wait_until(lambda: not slurm.ask("squeue", "-h", "--states=all").strip(), "all is forgotten")
    vm.begin(6 * CPUS, account_grace_s=60)
    line = vm.line(since=seen)
    ends = {a: line.exit(a) for a in range(1, 8)}
    assert {a: (e["why"], e["started"]) for a, e in ends.items()} == {
        1: ("LOST", True),
        2: ("CANCELLED", True),
        3: ("LOST", True),
        **dict.fromkeys((4, 5, 6, 7), ("CANCELLED", False)),
    }
    assert "FAILED, exit code 0:9" in ends[1]["msg"]
    assert "NODE_FAIL" in ends[3]["msg"]
