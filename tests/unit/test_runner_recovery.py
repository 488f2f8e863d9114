"""The runner killed, revived, stopped, out of disk, deleted: no attempt twice, no process left."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from remuda.workers.onvm.ledger import Ledger
from remuda.workers.onvm.processes import describe_process
from tests.unit.vm import Line, Vm, a_vm, job, output, wait_dead, wait_until


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    yield from a_vm(tmp_path / "vm")


def test_a_killed_runner_leaves_nothing_running_and_reports_it_lost(vm: Vm) -> None:
    line = vm.serve(4).line()
    scripts = {
        1: "sleep 1000",
        2: "trap '' TERM; sleep 1000 & wait",
        3: "setsid sleep 1000 & exec sleep 1000",
        4: "env -i sleep 1000 & exec env -i sleep 1000",
    }
    line.start(*(job(a, "sh", "-c", text) for a, text in scripts.items()), job(5, "true"))
    pids = [line.started(a)["pid"] for a in scripts]
    newest = line.started(4)["n"]
    vm.kill()
    vm.serve(4)
    for pid in pids:
        assert describe_process(pid) is None
    groups = [describe_process(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    assert not {group[0] for group in groups if group} & set(pids)
    again = vm.line(since=newest)
    for a in range(1, 6):
        entry = again.exit(a)
        assert (entry["why"], entry["st"], entry["sig"]) == ("LOST", None, None)
        assert entry["started"] == (a != 5)
    assert vm.processes() == [vm.pid]
    assert again.start(*(job(a, "true") for a in range(1, 6))) == {
        str(a): "exited" for a in range(1, 6)
    }
    assert again.run(6, "true")["why"] == "OK"
    assert min(e["n"] for e in again.entries) > newest


def test_exits_and_boxes_survive_a_kill(vm: Vm) -> None:
    line = vm.serve().line()
    line.sh(1, "echo hi; echo x > file")
    line.sh(2, "seq 50000")
    line.sh(3, "exit 3")
    line.start(job(4, "sh", "-c", "echo x > file; sleep 1000"))
    line.started(4)
    vm.kill()
    again = vm.serve().line()
    assert [again.exit(a)["why"] for a in (1, 2, 3, 4)] == ["OK", "OK", "NONZERO", "LOST"]
    assert output(again.exit(1)) == b"hi\n"
    assert again.whole(1, "file") == b"x\n"
    assert len(again.whole(2, "stdout")) == again.exit(2)["os"]
    vm.wait_boxes("1", "2.out")
    again.ask("free", a=[1, 2])
    vm.kill()
    third = vm.serve().line()
    assert third.start(job(1, "true"), job(3, "true")) == {"1": "stale", "3": "exited"}
    vm.wait_boxes()


def test_killed_at_any_instant_each_command_starts_at_most_once(vm: Vm, tmp_path: Path) -> None:
    """Kill -9 in the midst of it, again and again; redeliver everything each time."""
    marks = tmp_path / "marks"
    marks.mkdir()
    dice = random.Random(2)
    specs = [job(a, "sh", "-c", f"echo >> {marks}/{a}") for a in range(1, 601)]
    ends: dict[int, list[str]] = {spec["a"]: [] for spec in specs}
    recorded = 0
    for life in range(12):
        line = vm.serve().line(since=recorded)
        line.start(*specs[: 50 * (life + 1)])
        goal = len(line.entries) + dice.randint(0, 120)
        while len(line.entries) < goal and line.ask("status")["queued"]:
            pass
        pid = vm.pid
        os.kill(pid, signal.SIGKILL)
        line.drain()
        wait_dead(pid)
        for entry in line.entries:
            assert entry["n"] > recorded
            recorded = entry["n"]
            if entry["t"] == "exit":
                ends[entry["a"]].append(entry["why"])
    line = vm.serve().line(since=recorded)
    line.start(*specs)
    for entry in iter(lambda: line.ask("status")["queued"] or line.ask("status")["running"], []):
        assert entry
    missing = [a for a in ends if not ends[a]]
    for a in missing:
        ends[a].append(line.exit(a)["why"])
    for entry in line.entries:
        if entry["t"] == "exit" and entry["a"] not in missing:
            ends[entry["a"]].append(entry["why"])
    assert {len(found) for found in ends.values()} == {1}
    for a, found in ends.items():
        mark = marks / str(a)
        starts = len(mark.read_text()) if mark.exists() else 0
        assert starts <= 1
        assert starts == 1 or found == ["LOST"]
    assert {"OK", "LOST"} == {found[0] for found in ends.values()}
    assert vm.processes() == [vm.pid]


def test_a_torn_journal_is_read_up_to_the_tear(vm: Vm) -> None:
    line = vm.serve().line()
    line.sh(1, "exit 1")
    line.sh(2, "exit 2")
    vm.kill()
    journal = vm.home / "journal"
    journal.write_bytes(journal.read_bytes() + b'{"n":5,"t":"exit","a":9,"e":1')
    again = vm.serve().line()
    assert [again.exit(a)["st"] for a in (1, 2)] == [1, 2]
    assert again.run(9, "true")["why"] == "OK"


def test_the_journal_is_kept_short(vm: Vm) -> None:
    line = vm.serve().line()
    line.start(job(1, "sleep", "1000"))
    pid = line.started(1)["pid"]
    for a in range(2, 62):
        n = line.run(a, "head", "-c", "60000", "/dev/zero")["n"]
        line.ask("ack", n=n)
    assert (vm.home / "journal").stat().st_size < 3 << 20
    vm.kill()
    again = vm.serve().line(since=n)
    assert again.exit(1)["why"] == "LOST"
    assert describe_process(pid) is None
    assert again.start(job(2, "true"), job(61, "true")) == {"2": "exited", "61": "exited"}


def test_the_ledger_forgets_what_the_floor_covers(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "journal"))
    ledger.begin("boot", 1)
    for a in range(1, 1001):
        ledger.add(t="job", a=a, j=a, e=1, floor=a)
        ledger.add(t="intent", a=a)
        ledger.add(t="exit", n=a, a=a, e=1)
        if a % 2:
            ledger.add(t="drop", a=a)
    assert ledger.commit() == ""
    ledger.acknowledge(1000)
    assert ledger.rotate()
    again = Ledger(ledger.path)
    assert (len(again.stale), len(again.done), len(again.epochs)) == (0, 1, 1)
    assert (again.n, again.floor, again.acked, len(again.entries)) == (1000, 1000, 1000, 0)
    assert [again.state(a) for a in (1000, 999)] == ["exited", ""]


def test_after_a_reboot_nobody_is_killed_and_times_make_sense(vm: Vm) -> None:
    line = vm.serve().line()
    line.sh(1, "true")
    line.start(job(2, "sleep", "1000"))
    line.started(2)
    vm.kill()
    journal = vm.home / "journal"
    text = journal.read_text().replace(line.hello["boot_id"], "another boot")
    for moment in ("s", "x", "at"):
        text = text.replace(f'"{moment}":', f'"{moment}":9')
    journal.write_text(text)
    again = vm.serve().line()
    assert "restarted" in again.exit(2)["msg"]
    clock = max(m["now"] for m in again.pushed if m["push"] == "entries")
    assert all(clock - 5 < again.exit(1)[key] <= clock for key in ("s", "x"))


def test_serving_twice_is_harmless(vm: Vm) -> None:
    line = vm.serve().line()
    pid = vm.pid
    line.start(job(1, "sleep", "1000"))
    line.started(1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: vm.serve(), range(4)))
    assert vm.pid == pid
    assert line.ask("status")["running"] == [[1, line.started(1)["pid"]]]


def test_many_revive_a_dead_runner_at_once(vm: Vm) -> None:
    line = vm.serve().line()
    line.start(job(1, "sleep", "1000"))
    line.started(1)
    vm.kill()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: vm.call("serve"), range(4)))
    assert [(d.returncode, d.stdout) for d in done] == [(0, '{"ready":true}\n')] * 4
    assert vm.processes() == [vm.pid]
    assert vm.line().hello["slots"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_runner_takes_its_jobs_along(vm: Vm, number: signal.Signals) -> None:
    line = vm.serve().line()
    line.start(
        job(1, "sh", "-c", "setsid sleep 1000 & trap '' TERM; sleep 1000"), job(2, "sleep", "9")
    )
    line.started(2)
    os.kill(vm.pid, number)
    wait_until(lambda: vm.processes() == [], "nothing is left")
    assert vm.serve().line().exit(1)["why"] == "LOST"


def test_asked_to_stop_it_answers_when_nothing_runs(vm: Vm) -> None:
    line = vm.serve(1).line()
    line.start(job(1, "sh", "-c", "trap '' TERM; sleep 1000"), job(2, "sleep", "1000"))
    pid = line.started(1)["pid"]
    assert line.ask("stop")["ok"]
    assert describe_process(pid) is None
    with pytest.raises(EOFError):
        line.read()
    wait_until(lambda: vm.processes() == [], "the runner is gone too")
    again = vm.serve().line()
    assert (again.exit(2)["why"], again.exit(2)["started"]) == ("LOST", False)


def test_stop_is_final_and_repeatable(vm: Vm) -> None:
    line = vm.serve().line()
    line.start(job(1, "env", "-i", "setsid", "sleep", "1000"), job(2, "sleep", "1000"))
    line.started(2)
    for _ in range(2):
        assert vm.call("stop").returncode == 0
        assert vm.processes() == []
    refused = vm.call("serve", "--slots", "2")
    assert refused.returncode == 1
    assert "was stopped" in refused.stderr
    assert vm.processes() == []


def test_a_runner_that_hangs_is_stopped_all_the_same(vm: Vm) -> None:
    line = vm.serve().line()
    line.start(job(1, "sleep", "1000"))
    line.started(1)
    os.kill(vm.pid, signal.SIGSTOP)
    assert vm.call("stop").returncode == 0
    assert vm.processes() == []


def test_a_runner_whose_home_is_deleted_ends_with_its_jobs(vm: Vm) -> None:
    line = vm.serve().line()
    line.start(job(1, "sleep", "1000"), job(2, "sleep", "1000"), job(3, "true"))
    pids = [line.started(1)["pid"], line.started(2)["pid"], vm.pid]
    shutil.rmtree(vm.home)
    line.post("cancel", a=[1], grace=0)
    wait_dead(*pids)
    line.drain()
    assert [(e["a"], e["why"]) for e in line.entries if e["t"] == "exit"] in (
        [],
        [(1, "CANCELLED")],
    )


@pytest.mark.parametrize(
    "name", ["with space 'and' \"quotes\"", "ü" * 100, "/".join(["x" * 200] * 6)]
)
def test_homes_of_any_name(tmp_path: Path, name: str) -> None:
    for vm in a_vm(tmp_path / name):
        line = vm.serve().line()
        assert line.sh(1, 'echo "$REMUDA_VM_HOME" > f; cat f', out=[["f", False]])["why"] == "OK"
        assert output(line.exit(1)).decode() == f"{vm.home}\n"
        vm.kill()
        vm.serve()


def test_a_home_that_cannot_be_is_a_clear_error(vm: Vm, tmp_path: Path) -> None:
    vm.serve()
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "none"):
        command = [*vm.command("serve")[:-1], str(home)]
        words = ["--slots", "1"] if home.exists() else []
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=20)
        assert done.returncode == 1
        assert done.stderr.startswith("runner: ")
        assert done.stderr.count("\n") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(line: Line, filler: Path) -> None:
    """Write until nothing fits any more; what has ended may give some back a moment later."""
    numbers = itertools.count(1000)

    def full() -> bool:
        with pytest.raises(OSError, match="No space left"), filler.open("ab") as file:
            file.write(bytes(4 << 20))
        return bool(line.run(next(numbers), "true")["why"] == "STAGING")

    wait_until(full, "nothing fits any more")


def test_a_full_disk_fails_jobs_not_the_runner(small_disk: Path) -> None:
    for vm in a_vm(small_disk / "vm"):
        line = vm.serve().line()
        source = ["big", "/dev/null", 0o644]
        big = small_disk.parent / "big"
        big.write_bytes(bytes(4 << 20))
        source[1] = str(big)
        staged = line.run(1, "true", **{"in": [source]})
        assert staged["why"] == "STAGING"
        assert "No space left" in staged["msg"]
        line.ask("free", a=[1])
        vm.wait_boxes()
        entry = line.sh(2, "head -c 4000000 /dev/zero")
        assert (entry["why"], entry["st"], entry["os"]) == ("STAGING", 0, 4000000)
        assert "No space left" in entry["msg"]
        line.ask("free", a=[2])
        vm.wait_boxes()
        line.start(job(3, "sleep", "1000"))
        line.started(3)
        filler = small_disk / "filler"
        fill_up(line, filler)
        line.start(*(job(a, "true") for a in range(10, 200)))
        ends = [line.exit(a) for a in range(10, 200)]
        assert {e["why"] for e in ends} <= {"OK", "STAGING"}
        assert ends[-1]["why"] == "STAGING"
        assert not ends[-1]["started"]
        assert "No space left" in ends[-1]["msg"]
        line.ask("cancel", a=[3], grace=0)
        assert line.exit(3)["why"] == "CANCELLED"
        filler.unlink()
        assert line.run(200, "true")["why"] == "OK"
        newest = line.exit(200)["n"]
        vm.kill()
        again = vm.serve().line()
        assert {again.exit(a)["why"] for a in (10, 199, 200)} <= {"OK", "STAGING"}
        assert again.exit(3)["why"] == "CANCELLED"
        assert max(e["n"] for e in again.entries) == newest


def test_a_runner_is_revived_on_a_full_disk(small_disk: Path) -> None:
    for vm in a_vm(small_disk / "vm"):
        line = vm.serve().line()
        line.start(job(1, "sleep", "1000"))
        line.started(1)
        vm.kill()
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(4 << 20))
        assert vm.call("serve").returncode == 0
        assert vm.line().exit(1)["why"] == "LOST"
        filler.unlink()
