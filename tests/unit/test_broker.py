"""The `filesystem://` broker: its folders (Spool), its waiting (Bell), its kombu transport."""

# kombu has hardly an annotation.
# mypy: allow-untyped-calls
from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.messaging import Consumer

from remuda.broker import bell as bells
from remuda.broker import register, spool, transport_options
from remuda.broker.bell import Bell
from remuda.broker.inbox import Inbox
from remuda.broker.spool import MAX_DEATHS, Binding, Claimed, Spool
from remuda.config import load_settings
from remuda.errors import BrokerUnavailable


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.setattr(spool, "_SWEEP_S", 0.0)
    return Spool(tmp_path)


@pytest.fixture
def connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setattr(spool, "_SWEEP_S", 0.0)
    with connect(tmp_path) as opened:
        yield opened


def connect(folder: Path) -> Connection:
    register()
    return Connection("filesystem://", transport_options={"folder": str(folder)})


def take(box: Spool, queue: str = "q") -> Claimed:
    claimed = Inbox(box, queue).take()
    assert claimed is not None
    return claimed


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        threading.Event().wait(0.005)


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process that runs `code`."""
    argv = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


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
    threading.Timer(0.05, box.put, ("q", b"x")).start()
    started = time.monotonic()
    while (claimed := inbox.take()) is None:
        bell.wait(5.0)
    assert claimed.body == b"x"
    assert time.monotonic() - started < 0.9  # before the forced listing


def test_bell_wakes_up_when_rung(bell: Bell, tmp_path: Path) -> None:
    bell.watch(str(tmp_path))
    bell.ring()
    started = time.monotonic()
    bell.wait(5.0)
    assert time.monotonic() - started < 0.5


def test_rings_after_the_end_are_harmless(bell: Bell, tmp_path: Path) -> None:
    bell.watch(str(tmp_path / "missing"))
    bell.close()
    bell.ring()
    bell.watch(str(tmp_path))


# -- the transport --------------------------------------------------------------------------


def test_transport_options_make_a_private_folder(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path / "new" / "data", state_dir=tmp_path)
    folder = Path(transport_options(settings)["folder"])
    assert folder == settings.broker_dir
    for made in (folder, folder.parent, folder.parent.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert transport_options(settings)["folder"] == str(folder)


def test_transport_options_name_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = load_settings(data_dir=tmp_path / "file", state_dir=tmp_path)
    with pytest.raises(BrokerUnavailable, match="file/broker"):
        transport_options(settings)


def test_a_connection_without_a_folder_is_refused() -> None:
    register()
    with pytest.raises(BrokerUnavailable), Connection("filesystem://") as connection:
        connection.connect()


def test_unreadable_messages_are_dropped_and_the_next_is_delivered(
    connection: Connection, tmp_path: Path
) -> None:
    queue = connection.SimpleQueue("q")
    box = Spool(tmp_path)
    for body in (b"", b'{"half', b"\xff\xfe", b"[]", b"{}"):
        box.put("q", body)
    (Path(box.folder("q")) / "README").write_text("not ours")
    queue.put("good")
    message = queue.get(timeout=5)
    assert message.payload == "good"
    message.ack()
    assert box.names("q") == []
    queue.close()


def test_drain_events_waits_for_as_long_as_asked(connection: Connection) -> None:
    channel = connection.channel()
    with Consumer(channel, [Queue("q", auto_delete=True)], no_ack=True):
        started, cpu = time.monotonic(), time.process_time()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.8)
        assert 0.8 <= time.monotonic() - started < 1.5
        assert time.process_time() - cpu < 0.016  # 2 % of a core


def test_unacknowledged_messages_go_back_when_the_channel_closes(
    connection: Connection, tmp_path: Path
) -> None:
    channel = connection.channel()
    queue = Queue("q", Exchange("q"), "q")(channel)
    queue.declare()
    connection.Producer().publish("x", exchange="q", routing_key="q")
    assert queue.get().payload == "x"
    assert Spool(tmp_path).names("q") == []
    channel.close()
    assert len(Spool(tmp_path).names("q")) == 1


def test_reject(connection: Connection, tmp_path: Path) -> None:
    queue = connection.SimpleQueue("q")
    queue.put("x")
    queue.get(timeout=5).reject(requeue=True)
    message = queue.get(timeout=5)
    assert message.payload == "x"
    message.reject()
    assert Spool(tmp_path).names("q") == []
    queue.close()
    assert Spool(tmp_path).names("q") == []


def test_a_full_prefetch_window_ends_when_another_thread_acknowledges(
    connection: Connection,
) -> None:
    channel = connection.channel()
    got: list[Any] = []
    queue = Queue("q", Exchange("q"), "q")
    with Consumer(
        channel, [queue], callbacks=[lambda body, message: got.append(message)]
    ) as consumer:
        consumer.qos(prefetch_count=1)
        producer = connection.Producer()
        for body in ("1", "2"):
            producer.publish(body, exchange="q", routing_key="q", declare=[queue])
        connection.drain_events(timeout=5)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0)
        threading.Timer(0.05, got[0].ack).start()
        until(lambda: drained(connection) or len(got) == 2)
    assert [message.payload for message in got] == ["1", "2"]


def drained(connection: Connection) -> bool:
    try:
        connection.drain_events(timeout=0.2)
    except TimeoutError:
        return False
    return True


def test_a_consumer_that_acknowledges_waits_for_as_long_as_asked(connection: Connection) -> None:
    queue = connection.SimpleQueue("q")
    started = time.monotonic()
    with pytest.raises(Empty):
        queue.get(timeout=0.6)
    assert 0.6 <= time.monotonic() - started < 1.5
    queue.close()


@pytest.mark.parametrize("kind", ["fanout", "topic", "direct"])
def test_exchanges_deliver_to_every_bound_queue(connection: Connection, kind: str) -> None:
    exchange = Exchange(f"{kind}.e", type=kind)
    queues = [Queue(name, exchange, "a.b") for name in ("one", "two")]
    queues.append(Queue("three", exchange, "#" if kind == "topic" else "other"))
    got: list[str] = []

    def receive(body: Any, message: Any) -> None:
        got.append(message.delivery_tag.rpartition("@")[2])
        message.ack()

    with Consumer(connection.channel(), queues, callbacks=[receive]):
        connection.Producer().publish("x", exchange=exchange, routing_key="a.b")
        until(lambda: not drained(connection))
    assert sorted(got) == (["one", "two"] if kind == "direct" else ["one", "three", "two"])


def test_a_queue_made_again_still_wakes_its_consumer(
    connection: Connection, tmp_path: Path
) -> None:
    box = Spool(tmp_path)
    queue = connection.SimpleQueue("q")
    with pytest.raises(Empty):
        queue.get(timeout=0.01)
    box.remove("q")
    with connect(tmp_path) as another:
        another.SimpleQueue("q").close()
        with pytest.raises(Empty):
            queue.get(timeout=0.5)
    threading.Timer(0.05, queue.put, ("x",)).start()
    started = time.monotonic()
    assert queue.get(timeout=5).payload == "x"
    assert time.monotonic() - started < 0.9
    queue.close()


def test_the_transient_queue_of_a_consumer_ends_with_it(
    connection: Connection, tmp_path: Path
) -> None:
    exchange = Exchange("events", type="topic")
    queue = Queue("listener", exchange, "#", auto_delete=True)
    with Consumer(connection.channel(), [queue], no_ack=True):
        assert Spool(tmp_path).exists("listener")
    assert not Spool(tmp_path).exists("listener")
    connection.Producer().publish("x", exchange=exchange, routing_key="a")
    assert not Spool(tmp_path).exists("listener")


def test_queue_declare_counts_and_queue_delete_removes(connection: Connection) -> None:
    channel = connection.channel()
    queue = Queue("q", Exchange("e"), "k")(channel)
    queue.declare()
    connection.Producer().publish("x", exchange="e", routing_key="k")
    assert channel.queue_declare("q", passive=True).message_count == 1
    queue.delete(if_empty=True)
    assert queue.get(no_ack=True).payload == "x"
    assert queue.get(no_ack=True) is None
    assert queue.purge() == 0
    queue.delete()
    with pytest.raises(connection.channel_errors):
        channel.queue_declare("q", passive=True)
    with pytest.raises(Empty):
        channel._get("q")


def test_a_publisher_hears_of_a_full_disk(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue("q", Exchange("e"), "k")(connection.channel())
    queue.declare()

    def full(self: Spool, queue: str, body: bytes, *, create: bool = True) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "put", full)
    with pytest.raises(OperationalError, match="No space left"):
        connection.Producer().publish(
            "x", exchange="e", routing_key="k", retry=True, retry_policy={"max_retries": 0}
        )


def test_a_killed_consumer_loses_nothing(connection: Connection, tmp_path: Path) -> None:
    consumer = python(
        """
        import sys
        from kombu import Connection
        from remuda.broker import register
        register()
        connection = Connection("filesystem://", transport_options={"folder": sys.argv[1]})
        message = connection.SimpleQueue("q").get(timeout=20)
        print(message.payload, flush=True)
        sys.stdin.read()
        """,
        tmp_path,
    )
    queue = connection.SimpleQueue("q")
    queue.put("x")
    assert consumer.stdout is not None
    assert consumer.stdout.readline() == "x\n"
    consumer.send_signal(signal.SIGKILL)
    consumer.communicate(timeout=20)
    assert queue.get(timeout=20).payload == "x"
    queue.close()
