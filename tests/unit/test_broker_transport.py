"""The kombu transport of the `filesystem://` broker."""

# kombu has hardly an annotation.
# mypy: allow-untyped-calls
from __future__ import annotations

import errno
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.messaging import Consumer

from remuda.broker import register, spool, transport_options
from remuda.broker.spool import Spool
from remuda.config import load_settings
from remuda.errors import BrokerUnavailable
from tests.unit.processes import python, quickest, until


@pytest.fixture
def connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setattr(spool, "_SWEEP_S", 0.0)
    with connect(tmp_path) as opened:
        yield opened


def connect(folder: Path) -> Connection:
    register()
    return Connection("filesystem://", transport_options={"folder": str(folder)})


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
    message = queue.get(timeout=20)
    assert message.payload == "good"
    message.ack()
    assert box.names("q") == []
    queue.close()


def test_drain_events_waits_for_as_long_as_asked(connection: Connection) -> None:
    channel = connection.channel()
    with Consumer(channel, [Queue("q", auto_delete=True)], no_ack=True):
        cpu_s: list[float] = []

        def drain() -> None:
            began = time.process_time()
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.8)
            cpu_s.append(time.process_time() - began)

        assert 0.8 <= quickest(drain, 1.5) < 1.5
        assert min(cpu_s) < 0.016  # 2 % of a core


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
    queue.get(timeout=20).reject(requeue=True)
    message = queue.get(timeout=20)
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
        connection.drain_events(timeout=20)
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

    def get() -> None:
        with pytest.raises(Empty):
            queue.get(timeout=0.6)

    assert 0.6 <= quickest(get, 1.5) < 1.5
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

    def get() -> None:
        threading.Timer(0.05, queue.put, ("x",)).start()
        message = queue.get(timeout=20)
        assert message.payload == "x"
        message.ack()

    assert quickest(get, 0.9) < 0.9
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
