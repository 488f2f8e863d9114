"""The runner's side of the line: requests, fences, pushes, slow and broken peers."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vm import DEADLINE_S, Line, Vm, a_vm, job, wait_until


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    for vm in a_vm(tmp_path / "vm"):
        vm.serve()
        yield vm


@pytest.fixture
def line(vm: Vm) -> Line:
    return vm.line()


def test_hello_describes_the_vm(vm: Vm, line: Line) -> None:
    hello = line.hello
    assert (hello["slots"], hello["pid"], hello["journal"], hello["first_n"]) == (2, vm.pid, 0, 1)
    keys = {"version", "python", "memory_bytes", "cores", "disk_free_bytes", "architecture"}
    assert all(hello[key] for key in keys | {"boot_id"})


def test_requests_are_pipelined(line: Line) -> None:
    numbers = [line.post("status") for _ in range(500)]
    while not set(numbers) <= line.answers.keys():
        line.read()


@pytest.mark.parametrize(
    "text",
    [
        *("", "no json", "[1]", "7", "null", "{}", '{"do":7}', '{"do":"nothing"}'),
        *('{"do":"__init__"}', '{"do":"start"}', '{"do":"start","floor":0,"jobs":[{"a":1}]}'),
        *('{"do":"cancel","a":["x"]}', '{"do":"peek","a":1}', "\udc80\xff", "[" * 100000),
        '{"do":"peek","a":1,"file":"x","size":-1}',
    ],
    ids=lambda text: text[:20],
)
def test_nonsense_is_refused_and_changes_nothing(line: Line, text: str) -> None:
    line.socket.sendall(text.encode(errors="surrogateescape") + b"\n")
    while None not in line.answers:
        line.read()
    answer = line.answers[None]  # type: ignore[index]
    assert (answer["ok"], answer["code"]) == (False, "BAD")
    status = line.ask("status")
    assert (status["queued"], status["running"], status["exited"]) == ([], [], [])


def test_a_batch_with_nonsense_starts_nothing(line: Line) -> None:
    answer = line.ask("start", floor=0, jobs=[job(1, "true"), {"j": 2}])
    assert answer["code"] == "BAD"
    assert line.ask("status")["exited"] == []


def test_an_attempt_starts_once(vm: Vm, line: Line) -> None:
    mark = vm.home / "mark"
    spec = job(1, "sh", "-c", f"echo >> {mark}; exit 3")
    other = vm.line(watch=False)
    line.start(spec, spec)
    other.start(spec)
    assert line.exit(1)["st"] == 3
    assert other.start(spec) == line.start(spec) == {"1": "exited"}
    line.ask("ack", n=line.entries[-1]["n"])
    assert line.start(spec) == {"1": "exited"}
    line.ask("free", a=[1])
    assert line.start(spec) == {"1": "stale"}
    assert line.start(job(2, "true"), floor=2) == {"2": "queued"}
    assert line.start(spec, floor=0) == {"1": "stale"}
    assert line.exit(2)["why"] == "OK"
    assert mark.read_text() == "\n"
    assert len([e for e in line.entries if e["a"] == 1]) == 2


def test_what_was_freed_before_it_came_never_starts(line: Line) -> None:
    line.ask("free", a=[1])
    assert line.start(job(1, "true")) == {"1": "stale"}


def test_an_older_epoch_is_refused_and_a_newer_one_ends_the_older(line: Line) -> None:
    line.start(job(1, "sleep", "1000", j=1, e=1), job(2, "sleep", "1000", j=2, e=5))
    line.started(2)
    assert line.start(job(3, "true", j=2, e=4)) == {"3": "stale"}
    assert line.start(job(4, "true", j=1, e=2)) == {"4": "queued"}
    assert line.exit(1)["why"] == "CANCELLED"
    assert line.exit(4)["why"] == "OK"
    assert line.exit(1)["n"] < line.started(4)["n"]
    line.start(job(5, "true", j=7, e=1, cores=2), job(6, "true", j=7, e=2))
    assert (line.exit(5)["why"], line.exit(5)["started"]) == ("CANCELLED", False)
    line.ask("cancel", a=[2], grace=0)
    assert line.exit(6)["why"] == "OK"


def test_the_floor(line: Line) -> None:
    assert line.start(job(5, "sleep", "1000"), floor=5) == {"5": "queued"}
    assert line.start(job(4, "true"), job(6, "sleep", "1000"), floor=5)["4"] == "stale"
    assert line.start(job(4, "true"), floor=1) == {"4": "stale"}  # a reordered request
    assert line.start(job(5, "true"), floor=7) == {"5": "running"}  # known, below the floor
    line.ask("cancel", a=[5, 6], grace=0)


def test_what_has_not_begun_can_be_recalled(line: Line) -> None:
    line.start(job(1, "sleep", "1000", cores=2), job(2, "true"), job(3, "true"), job(4, "true"))
    line.started(1)
    assert line.ask("recall", a=[1, 2, 2, 4, 9])["recalled"] == [2, 4]
    assert line.start(job(2, "true")) == {"2": "stale"}
    line.ask("cancel", a=[1], grace=0)
    assert line.exit(3)["why"] == "OK"
    status = line.ask("status")
    assert (status["queued"], status["exited"]) == ([], [1, 3])
    assert not [e for e in line.entries if e["a"] in (2, 4)]


def test_entries_are_kept_until_acknowledged(vm: Vm, line: Line) -> None:
    line.start(*(job(a, "true") for a in range(1, 11)))
    for a in range(1, 11):
        line.exit(a)
    numbers = [e["n"] for e in line.entries]
    assert numbers == list(range(1, 21))
    line.close()
    for since in (0, 7, 20, 99):
        again = vm.line(since=since)
        again.ask("status")
        if since < 20:
            while not again.entries or again.entries[-1]["n"] < 20:
                again.read()
        assert [e["n"] for e in again.entries] == numbers[since:]
    again.post("ack", n=12)
    last = vm.line()
    assert (last.hello["first_n"], last.hello["journal"]) == (13, 20)


def test_one_connection_watches(vm: Vm, line: Line) -> None:
    plain = vm.line(watch=False)
    line.run(1, "true")
    second = vm.line(since=line.entries[-1]["n"])
    second.run(2, "true")
    while {"push": "unwatched"} not in line.pushed:
        line.read()
    line.ask("status")
    plain.ask("status")
    assert {e["a"] for e in line.entries} == {1}
    assert {e["a"] for e in second.entries} == {2}
    assert plain.pushed == []
    second.close()
    plain.start(job(3, "true"))
    assert vm.line().exit(3)["why"] == "OK"


def test_beats_come_by_themselves(line: Line) -> None:
    while len(beats := [m for m in line.pushed if m["push"] == "beat"]) < 2:
        line.read()
    assert len(beats[0]["load"]) == 3
    assert {"running", "queued", "mem_free", "disk_free", "uptime", "n"} <= beats[0].keys()


def test_an_idle_runner_does_next_to_nothing(vm: Vm, line: Line) -> None:
    line.start(job(1, "true"), job(2, "sleep", "1000", follow=True))
    line.exit(1)

    def ticks() -> int:
        field = Path(f"/proc/{vm.pid}/stat").read_text().rpartition(")")[2].split()
        return int(field[11]) + int(field[12])

    before, beats = ticks(), len(line.pushed)
    while len(line.pushed) < beats + 6:  # for a second
        line.read()
    assert ticks() - before <= 5  # hundredths of a second
    line.ask("cancel", a=[2], grace=0)


def test_a_watcher_that_does_not_read_holds_up_nobody(vm: Vm) -> None:
    slow = vm.line()
    noisy = [job(a, "head", "-c", "60000", "/dev/zero", follow=True) for a in range(1, 201)]
    quick = vm.line(watch=False)
    quick.start(*noisy)
    wait_until(lambda: len(quick.ask("status")["exited"]) == 200, "all jobs end")
    rss = Path(f"/proc/{vm.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    assert int(rss) < 150_000  # 200 times 80 kB of entries, once, and a bounded buffer
    for a in range(1, 201):
        assert slow.exit(a)["os"] == 60000
    assert [e["n"] for e in slow.entries] == list(range(1, 401))


def test_unacknowledged_output_does_not_pile_up_in_memory(vm: Vm) -> None:
    line = vm.line(watch=False)
    line.start(*(job(a, "head", "-c", "60000", "/dev/zero") for a in range(1, 701)))
    wait_until(lambda: len(line.ask("status")["exited"]) == 700, "all jobs end")
    watcher = vm.line()
    spilled = [a for a in range(1, 701) if watcher.exit(a).get("osp")]
    assert spilled
    assert watcher.exit(1)["o"]
    assert watcher.whole(spilled[0], "stdout") == bytes(60000)


def test_a_peer_that_asks_but_never_reads_is_dropped(vm: Vm, line: Line) -> None:
    line.sh(1, "head -c 4000000 /dev/zero")
    deaf = vm.line(watch=False)

    def ask_for_more() -> bool:
        try:
            for _ in range(20):
                deaf.post("peek", a=1, file="stdout")
        except OSError:
            return True
        return not line.ask("status")["ok"]

    wait_until(ask_for_more, "it is dropped")
    assert line.ask("status")["ok"]


def test_a_line_without_end_is_dropped(vm: Vm, line: Line) -> None:
    endless = vm.line(watch=False)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        endless.socket.sendall(b"x" * (100 << 20))
    assert line.ask("status")["ok"]


def test_requests_in_small_pieces(line: Line) -> None:
    text = json.dumps({"id": 77, "do": "status"}).encode() + b"\n"
    for byte in text:
        line.socket.sendall(bytes([byte]))
    while 77 not in line.answers:
        line.read()


def test_attach_bridges_the_line(vm: Vm) -> None:
    bridge = subprocess.Popen(vm.command("attach"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert bridge.stdin
    assert bridge.stdout
    bridge.stdin.write(b'{"id":1,"do":"hello"}\n')
    bridge.stdin.flush()
    answer: dict[str, Any] = json.loads(bridge.stdout.readline())
    assert (answer["re"], answer["pid"]) == (1, vm.pid)
    bridge.stdin.close()
    assert bridge.wait(DEADLINE_S) == 0
    bridge.stdout.close()


def test_random_requests_keep_the_books(vm: Vm, line: Line) -> None:
    """Whatever is asked in whatever order: one exit for each that was not recalled, none twice."""
    dice = random.Random(4)
    told: set[int] = set()
    recalled: set[int] = set()
    for _ in range(300):
        ids = [dice.randint(1, 200) for _ in range(dice.randint(1, 5))]
        match dice.randint(0, 5):
            case 0 | 1 | 2:
                states = line.start(*(job(a, "sleep", "0.002") for a in ids))
                told |= {int(a) for a, state in states.items() if state != "stale"}
            case 3:
                line.ask("cancel", a=ids, grace=dice.choice([0, 1]))
            case 4:
                recalled |= set(line.ask("recall", a=ids)["recalled"])
            case 5:
                line.ask("ack", n=dice.randint(0, max((e["n"] for e in line.entries), default=0)))
    for a in told - recalled:
        line.exit(a)
    starts = [e["a"] for e in line.entries if e["t"] == "start"]
    exits = [e["a"] for e in line.entries if e["t"] == "exit"]
    assert len(starts) == len(set(starts))
    assert sorted(exits) == sorted(told - recalled)
    assert not recalled & set(starts)
