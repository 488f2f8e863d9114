"""The folders of the `filesystem://` broker (Spool) and its waiting for messages (Bell)."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda.broker import bell as bells
from remuda.broker import spool
from remuda.broker.bell import Bell
from remuda.broker.files import listdir
from remuda.broker.inbox import Inbox
from remuda.broker.spool import MAX_DEATHS, Binding, Claimed, Spool
from tests.unit.processes import python, quickest, until


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.setattr(spool, "_SWEEP_S", 0.0)
    return Spool(tmp_path)


def take(box: Spool, queue: str = "q") -> Claimed:
    claimed = Inbox(box, queue).take()
    assert claimed is not None
    return claimed


HOLD = """
    import sys
    from remuda.broker.inbox import Inbox
    from remuda.broker.spool import Spool
    box = Spool(sys.argv[1])
    if sys.argv[2] == "claim":
        assert Inbox(box, "q").take()
    else:
        box.declare("q", transient=True)
    print("holding", flush=True)
    sys.stdin.read()
"""


def hold_and_die(box: Spool, what: str) -> None:
    """Let a process claim a message, or hold a transient queue, and be killed."""
    process = python(HOLD, box.root, what)
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    process.kill()
    process.communicate(timeout=20)


# -- Spool ----------------------------------------------------------------------------------


def test_messages_come_in_the_order_they_were_put(box: Spool) -> None:
    for number in range(50):
        assert box.put("q", b"%d" % number)
    inbox = Inbox(box, "q")
    taken = [inbox.take() for _ in range(50)]
    assert [claimed and claimed.body for claimed in taken] == [b"%d" % n for n in range(50)]
    assert inbox.take() is None


def test_a_message_is_seen_whole_or_not_at_all(box: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    rename = os.rename

    def watched(source: str, target: str) -> None:
        seen.append(box.names("q"))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    box.put("q", b"x" * 100_000)
    assert seen == [[]]
    assert take(box).body == b"x" * 100_000


def test_a_full_disk_leaves_no_half_message(box: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    box.declare("q")

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        box.put("q", b"x")
    assert box.names("q") == []
    assert os.listdir(os.path.join(box.root, "tmp")) == []


def test_requeued_messages_keep_their_place(box: Spool) -> None:
    for body in (b"1", b"2"):
        box.put("q", body)
    first = take(box)
    box.requeue(first.tag)
    box.requeue(first.tag)
    assert [take(box).body, take(box).body] == [b"1", b"2"]


def test_acknowledged_messages_do_not_come_back(box: Spool) -> None:
    box.put("q", b"1")
    tag = take(box).tag
    box.ack(tag)
    box.ack(tag)
    box.requeue(tag)
    assert Inbox(box, "q").take() is None


def test_what_a_killed_process_had_claimed_comes_back_first(box: Spool) -> None:
    box.put("q", b"1")
    box.put("q", b"2")
    hold_and_die(box, "claim")
    assert len(box.names("q")) == 1
    box.sweep()
    assert [take(box).body, take(box).body] == [b"1", b"2"]


def test_claims_of_live_processes_are_left_alone(box: Spool) -> None:
    box.put("q", b"1")
    take(box)
    other = Spool(box.root)
    other.sweep()
    assert other.names("q") == []


def test_a_message_that_kills_its_workers_is_dropped_in_the_end(
    box: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MAX_DEATHS", 2)
    box.put("q", b"1")
    for waiting in (1, 0):
        hold_and_die(box, "claim")
        box.sweep()
        assert len(box.names("q")) == waiting
    assert MAX_DEATHS == 20


def test_purge_counts_what_it_removes(box: Spool) -> None:
    for _ in range(3):
        box.put("q", b"x")
    box.put("other", b"x")
    assert box.purge("q") == 3
    assert box.purge("q") == 0
    assert len(box.names("other")) == 1


def test_a_transient_queue_ends_with_its_process(box: Spool) -> None:
    process = python(HOLD, box.root, "queue")
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    box.bind("exchange", Binding("key", "", "q"))
    assert box.put("q", b"x", create=False)
    process.kill()
    process.communicate(timeout=20)
    assert not box.put("q", b"x", create=False)
    assert not box.exists("q")
    assert box.bindings("exchange") == []


def test_sweep_removes_dead_transient_queues_and_keeps_the_rest(box: Spool) -> None:
    box.declare("durable")
    box.declare("mine", transient=True)
    hold_and_die(box, "queue")
    assert box.exists("q")
    box.sweep()
    Spool(box.root).sweep()
    assert [box.exists(queue) for queue in ("q", "mine", "durable")] == [False, True, True]


def test_a_queue_is_declared_while_another_thread_removes_it(
    box: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who declares waits for who removes, and holds up nothing that is needed for it."""
    hold_and_die(box, "declare")
    declaring = threading.Thread(target=box.declare, args=("q",), kwargs={"transient": True})

    def meanwhile(path: str) -> list[str]:
        if path.endswith("exchanges") and declaring.ident is None:
            declaring.start()
            until(box._lock.locked)
        return listdir(path)

    monkeypatch.setattr("remuda.broker.spool.listdir", meanwhile)
    sweeping = threading.Thread(target=box.sweep, daemon=True)
    declaring.daemon = True
    sweeping.start()
    sweeping.join(20)
    assert not sweeping.is_alive()
    declaring.join(20)
    assert not declaring.is_alive()
    assert box.exists("q")
    assert box.put("q", b"x", create=False)


def test_leaving_a_transient_queue_removes_it_when_nobody_else_holds_it(box: Spool) -> None:
    other = Spool(box.root)
    box.declare("q", transient=True)
    other.declare("q", transient=True)
    box.leave("q")
    assert other.exists("q")
    other.leave("q")
    assert not other.exists("q")


def test_stale_messages_of_a_transient_queue_are_dropped(box: Spool) -> None:
    box.declare("q", transient=True)
    box.declare("durable")
    for queue in ("q", "durable"):
        box.put(queue, b"x")
        name = os.path.join(box.folder(queue), box.names(queue)[0])
        os.utime(name, (time.time() - 3600, time.time() - 3600))
    box.sweep()
    assert (box.names("q"), len(box.names("durable"))) == ([], 1)


def test_a_forked_child_leaves_its_parents_queues_and_claims_alone(box: Spool) -> None:
    box.declare("t", transient=True)
    box.put("q", b"x")
    tag = take(box).tag
    child = os.fork()
    if child == 0:
        box.leave("t")
        box.requeue(tag)
        box.put("q", b"child")
        assert take(box).body == b"child"
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert box.exists("t")
    assert Spool(box.root).names("q") == []
    box.requeue(tag)
    assert take(box).body == b"x"


@pytest.mark.parametrize(
    "names",
    [
        ("a/b", "a_b", "a%2Fb"),
        (".", "..", ""),
        ("é", "e"),
        ("x" * 300, "x" * 301),
        (".alive", "q@r"),
    ],
)
def test_any_queue_name_is_a_queue_of_its_own(box: Spool, names: tuple[str, ...]) -> None:
    for name in names:
        assert box.put(name, name.encode())
    for name in names:
        claimed = take(box, name)
        assert claimed.body == name.encode()
        box.requeue(claimed.tag)
    assert [take(box, name).body for name in names] == [name.encode() for name in names]
    assert sorted(os.listdir(box.root)) == ["claims", "queues", "tmp"]


def test_bindings_are_kept_once(box: Spool) -> None:
    other = Spool(box.root)
    for _ in range(2):
        box.bind("e", Binding("key", "^key$", "q"))
        assert other.bindings("e") == [Binding("key", "^key$", "q")]
    box.remove("q")
    until(lambda: other.bindings("e") == [])


CONSUME = """
    import sys
    from remuda.broker.inbox import Inbox
    from remuda.broker.spool import Spool
    box = Spool(sys.argv[1])
    inbox = Inbox(box, "q")
    while True:
        claimed = inbox.take()
        if claimed is None:
            continue
        box.ack(claimed.tag)
        if claimed.body == b"end":
            break
        print(claimed.body.decode())
"""
PUBLISH = """
    import sys
    from remuda.broker.spool import Spool
    box = Spool(sys.argv[1])
    for number in range(int(sys.argv[2])):
        box.put("q", f"{sys.argv[3]}-{number}".encode())
"""


def test_many_processes_share_a_queue_and_each_message_goes_to_one(box: Spool) -> None:
    consumers = [python(CONSUME, box.root) for _ in range(3)]
    publishers = [python(PUBLISH, box.root, 300, name) for name in "ab"]
    for publisher in publishers:
        publisher.communicate(timeout=60)
        assert publisher.returncode == 0
    for _ in consumers:
        box.put("q", b"end")
    lines = [line for c in consumers for line in c.communicate(timeout=60)[0].split()]
    assert sorted(lines) == sorted(f"{name}-{number}" for name in "ab" for number in range(300))


# -- Bell -----------------------------------------------------------------------------------


@pytest.fixture(params=["inotify", "polling"])
def bell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bell]:
    if request.param == "polling":
        monkeypatch.setattr(bells, "_inotify_open", lambda: -1)
    bell = Bell()
    yield bell
    bell.close()
    bell.close()


def test_bell_wakes_up_for_a_message(box: Spool, bell: Bell) -> None:
    box.declare("q")
    bell.watch(box.folder("q"))
    inbox = Inbox(box, "q")

    def receive() -> None:
        threading.Timer(0.05, box.put, ("q", b"x")).start()
        while (claimed := inbox.take()) is None:
            bell.wait(5.0)
        assert claimed.body == b"x"

    assert quickest(receive, 0.9) < 0.9  # before the forced listing


def test_bell_wakes_up_when_rung(bell: Bell, tmp_path: Path) -> None:
    bell.watch(str(tmp_path))

    def rung() -> None:
        bell.ring()
        bell.wait(5.0)

    assert quickest(rung, 0.5) < 0.5


def test_rings_after_the_end_are_harmless(bell: Bell, tmp_path: Path) -> None:
    bell.watch(str(tmp_path / "missing"))
    bell.close()
    bell.ring()
    bell.watch(str(tmp_path))
