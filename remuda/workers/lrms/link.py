"""A Resource's line to the runner of its VM: opened when needed, every wait with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any, cast

from remuda.errors import VmUnreachable
from remuda.workers.backends.base import Backend, VmAddress
from remuda.workers.channel import Channel

__all__ = ["Deadline", "RunnerLink"]


class Deadline:
    """A time by which a call must be over."""

    def __init__(self, seconds: float, what: str) -> None:
        """Begin now; `what` is for the message."""
        self._seconds, self._what = seconds, what
        self._at = time.monotonic() + seconds

    def left_s(self) -> float:
        """Return how long is left; raises VmUnreachable if nothing is."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise VmUnreachable(f"{self._what}: not done in {self._seconds:g} s")
        return left


class BoundedChannel:
    """A channel as one call sees it: no answer is waited for past the call's deadline."""

    def __init__(self, channel: Channel, deadline: Deadline) -> None:
        """Take both."""
        self._channel, self._deadline = channel, deadline

    def request(self, do: str, *, timeout_s: float = 10.0, **fields: Any) -> dict[str, Any]:
        """Ask, as `Channel.request` does."""
        left_s = self._deadline.left_s()
        return self._channel.request(do, timeout_s=min(timeout_s, left_s), **fields)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


class RunnerLink:
    """Connects to the VM's runner as its watcher, and remembers the exits it was told."""

    def __init__(self, backend: Backend, vm: VmAddress) -> None:
        """Connect with the first need."""
        self.backend, self.vm = backend, vm
        self._opening = threading.Lock()
        self._news = threading.Condition()
        self._channel: Channel | None = None
        self._watching = False
        self._heard = 0  # the newest entry
        self._exits: dict[int, dict[str, Any]] = {}
        self._entries: dict[int, int] = {}  # number: attempt; not acknowledged yet
        self._freed: set[int] = set()

    def channel(self, deadline: Deadline, *, revive: bool = True) -> Channel:
        """Return a channel that keeps the deadline; a runner found dead is started again.

        Raises VmUnreachable.
        """
        with self._opening:
            channel = self._channel
            if channel is None or channel.closed:
                try:
                    channel = self._open(deadline)
                except VmUnreachable:
                    if not revive:
                        raise
                    self.backend.revive(self.vm, timeout_s=deadline.left_s())
                    channel = self._open(deadline)
            elif not self._watching:
                self._watching = True
                channel.request("hello", timeout_s=deadline.left_s(), watch=True, since=self._heard)
            return cast(Channel, BoundedChannel(channel, deadline))

    def _open(self, deadline: Deadline) -> Channel:
        self._watching = True
        self._channel = self.backend.connect(
            self.vm,
            watch=True,
            since=self._heard,
            on_push=self._on_push,
            timeout_s=min(10.0, deadline.left_s()),
        )
        return self._channel

    def _on_push(self, channel: Channel, message: dict[str, Any]) -> None:
        if message["push"] == "unwatched":
            self._watching = False
        if message["push"] != "entries":
            return
        with self._news:
            for entry in message["entries"]:
                if entry["n"] <= self._heard:
                    continue
                self._heard = entry["n"]
                self._entries[entry["n"]] = entry["a"]
                if entry["t"] == "exit":
                    self._exits[entry["a"]] = entry
            self._news.notify_all()

    def exit_of(self, attempt_id: int) -> dict[str, Any] | None:
        """Return the exit entry, if it was heard."""
        with self._news:
            return self._exits.get(attempt_id)

    def ended(self) -> set[int]:
        """Return the attempts whose exit was heard."""
        with self._news:
            return set(self._exits)

    def wait_exits(self, attempt_ids: Iterable[int], deadline: Deadline) -> None:
        """Wait until the exit of each was heard; raises VmUnreachable."""
        wanted = set(attempt_ids)
        with self._news:
            while not wanted <= self._exits.keys():
                self._news.wait(deadline.left_s())

    def free(self, channel: Channel, attempt_id: int) -> None:
        """Have what it left deleted, and what is known of it forgotten, here and there."""
        self.backend.free(channel, self.vm, [attempt_id])
        with self._news:
            self._exits.pop(attempt_id, None)
            self._freed.add(attempt_id)
            # Acknowledged is only what everybody is done with: another may want the rest.
            newest = 0
            for number, attempt in sorted(self._entries.items()):
                if attempt not in self._freed:
                    break
                newest = number
                del self._entries[number]
            self._freed &= set(self._entries.values()) | {attempt_id}
        if newest:
            channel.send("ack", n=newest)

    def close(self) -> None:
        """Hang up; the next need connects again."""
        with self._opening:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
