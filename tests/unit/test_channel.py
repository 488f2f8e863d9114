"""The channel against a scripted peer: answers, pushes, broken and silent lines."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from remuda.errors import BackendError, OutputNotAvailable, VmUnreachable
from remuda.workers.channel import Channel, PipePair, hub

DEADLINE_S = 20.0


class Peer:
    """The other end, played by the test, and what the channel reported."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE_S)
        self.socket, self.file = ours, ours.makefile("rb")
        self.pushes: list[dict[str, Any]] = []
        self.arrived = threading.Semaphore(0)
        self.closes: list[Channel] = []
        self.closed = threading.Event()
        self.channel = Channel(theirs, "VM x", on_push=self.on_push, on_close=self.on_close)

    def on_push(self, channel: Channel, message: dict[str, Any]) -> None:
        assert channel is self.channel
        self.pushes.append(message)
        self.arrived.release()

    def on_close(self, channel: Channel) -> None:
        self.closes.append(channel)
        self.closed.set()

    def hear(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.file.readline())
        return message

    def say(self, *messages: dict[str, Any]) -> None:
        self.socket.sendall(b"".join(json.dumps(m).encode() + b"\n" for m in messages))

    def hang_up(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.channel.close()
    assert peer.closed.wait(DEADLINE_S)
    assert peer.closes == [peer.channel]
    peer.hang_up()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def test_a_request_is_answered(peer: Peer, pool: ThreadPoolExecutor) -> None:
    answer = pool.submit(peer.channel.request, "start", floor=1, jobs=[])
    assert peer.hear() == {"id": 1, "do": "start", "floor": 1, "jobs": []}
    peer.say({"re": 1, "ok": True, "states": {}})
    assert answer.result(DEADLINE_S)["states"] == {}


def test_many_requests_are_in_flight_and_answered_in_any_order(
    peer: Peer, pool: ThreadPoolExecutor
) -> None:
    answers = {n: pool.submit(peer.channel.request, "echo", n=n) for n in range(32)}
    asked = [peer.hear() for _ in range(32)]
    peer.say(*({"re": m["id"], "ok": True, "n": m["n"]} for m in reversed(asked)))
    assert {n: answer.result(DEADLINE_S)["n"] for n, answer in answers.items()} == {
        n: n for n in range(32)
    }


@pytest.mark.parametrize(("code", "error"), [("BAD", BackendError), ("NOFILE", OutputNotAvailable)])
def test_a_refusal_is_an_error(
    peer: Peer, pool: ThreadPoolExecutor, code: str, error: type[Exception]
) -> None:
    answer = pool.submit(peer.channel.request, "peek")
    peer.say({"re": peer.hear()["id"], "ok": False, "code": code, "error": "because"})
    with pytest.raises(error, match="VM x refused 'peek': because"):
        answer.result(DEADLINE_S)
    assert not peer.channel.closed


def test_silence_is_unreachable_and_a_late_answer_is_ignored(
    peer: Peer, pool: ThreadPoolExecutor
) -> None:
    with pytest.raises(VmUnreachable, match=r"within 0\.01 s"):
        peer.channel.request("status", timeout_s=0.01)
    late = peer.hear()["id"]
    answer = pool.submit(peer.channel.request, "status")
    number = peer.hear()["id"]
    peer.say({"re": late, "ok": True, "late": True}, {"re": number, "ok": True})
    assert "late" not in answer.result(DEADLINE_S)


def test_a_broken_line_wakes_all_who_wait(peer: Peer, pool: ThreadPoolExecutor) -> None:
    answers = [pool.submit(peer.channel.request, "status") for _ in range(8)]
    for _ in answers:
        peer.hear()
    peer.hang_up()
    for answer in answers:
        with pytest.raises(VmUnreachable):
            answer.result(DEADLINE_S)
    assert peer.closed.wait(DEADLINE_S)
    assert peer.channel.closed
    with pytest.raises(VmUnreachable):
        peer.channel.request("status")
    with pytest.raises(VmUnreachable):
        peer.channel.send("ack", n=1)


def test_closing_wakes_all_who_wait(peer: Peer, pool: ThreadPoolExecutor) -> None:
    answer = pool.submit(peer.channel.request, "status")
    peer.hear()
    peer.channel.close()
    peer.channel.close()
    with pytest.raises(VmUnreachable):
        answer.result(DEADLINE_S)
    assert peer.file.readline() == b""


def test_pushes_come_in_order_and_whole(peer: Peer) -> None:
    text = b"".join(json.dumps({"push": "beat", "n": n}).encode() + b"\n" for n in range(300))
    for i in range(0, len(text), 7):
        peer.socket.sendall(text[i : i + 7])
    for _ in range(300):
        assert peer.arrived.acquire(timeout=DEADLINE_S)
    assert [m["n"] for m in peer.pushes] == list(range(300))


def test_a_long_push_is_read_at_once(peer: Peer) -> None:
    peer.say({"push": "output", "d": "x" * (20 << 20)})
    assert peer.arrived.acquire(timeout=DEADLINE_S)
    assert len(peer.pushes[0]["d"]) == 20 << 20


def test_a_callback_may_send_but_not_wait(peer: Peer) -> None:
    failures: list[Exception] = []

    def on_push(channel: Channel, message: dict[str, Any]) -> None:
        channel.send("ack", n=message["n"])
        try:
            channel.request("status")
        except RuntimeError as error:
            failures.append(error)

    peer.channel._on_push = on_push
    peer.say({"push": "beat", "n": 3})
    assert peer.hear() == {"do": "ack", "n": 3}
    peer.channel._on_push = peer.on_push
    peer.say({"push": "beat", "n": 4})
    assert peer.arrived.acquire(timeout=DEADLINE_S)
    assert failures


def test_a_callback_that_fails_is_logged_and_harms_nobody(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    called = threading.Event()

    def fail(channel: Channel, message: dict[str, Any]) -> None:
        called.set()
        raise ZeroDivisionError

    peer.channel._on_push = fail
    peer.say({"push": "beat"})
    assert called.wait(DEADLINE_S)  # channels have no order among each other
    other = Peer()
    other.say({"push": "beat"})
    assert other.arrived.acquire(timeout=DEADLINE_S)
    peer.channel._on_push = peer.on_push
    peer.say({"push": "beat"})
    assert peer.arrived.acquire(timeout=DEADLINE_S)
    assert "ZeroDivisionError" in caplog.text
    other.channel.close()
    assert other.closed.wait(DEADLINE_S)
    other.hang_up()


@pytest.mark.parametrize("garbage", [b"garbage\n", b"[1]\n", b"\xff\n", b"7\n"])
def test_garbage_closes_the_channel(peer: Peer, garbage: bytes) -> None:
    peer.socket.sendall(garbage)
    assert peer.closed.wait(DEADLINE_S)


def test_much_is_sent_to_a_slow_reader(peer: Peer) -> None:
    for n in range(20):
        peer.channel.send("start", n=n, x="x" * (1 << 20))
    assert [peer.hear()["n"] for _ in range(20)] == list(range(20))


def test_a_peer_that_never_reads_is_given_up(peer: Peer) -> None:
    def flood() -> None:
        for _ in range(100):
            peer.channel.send("start", x="x" * (1 << 20))

    with pytest.raises(VmUnreachable, match="stopped reading"):
        flood()
    assert peer.closed.wait(DEADLINE_S)


def test_a_pair_of_pipes_is_a_line_too(pool: ThreadPoolExecutor) -> None:
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    closed = threading.Event()
    channel = Channel(PipePair(our_in, our_out), "pipes", on_close=lambda _: closed.set())
    answer = pool.submit(channel.request, "start", x="x" * (1 << 20))
    with open(their_in, "rb") as heard, open(their_out, "wb", buffering=0) as said:
        assert len(json.loads(heard.readline())["x"]) == 1 << 20
        said.write(b'{"re":1,"ok":true}\n')
        assert answer.result(DEADLINE_S)["ok"]
    assert closed.wait(DEADLINE_S)


def test_all_channels_of_a_process_share_a_thread() -> None:
    peers = [Peer() for _ in range(50)]
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("remuda-channels") == 1
    for peer in peers:
        peer.say({"push": "beat"})
    for peer in peers:
        assert peer.arrived.acquire(timeout=DEADLINE_S)
        peer.hang_up()
    for peer in peers:
        assert peer.closed.wait(DEADLINE_S)


def test_a_forked_child_has_a_hub_of_its_own(peer: Peer) -> None:
    ours = hub()
    child = os.fork()
    if not child:
        inner = Peer()
        inner.say({"push": "beat"})
        good = hub() is not ours and inner.arrived.acquire(timeout=DEADLINE_S)
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    peer.say({"push": "beat"})
    assert peer.arrived.acquire(timeout=DEADLINE_S)
