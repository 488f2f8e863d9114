"""The controller's end of the line to a runner: pipelined requests, pushed answers.

All channels of a process share one thread that reads, the hub's; it starts with the first channel.
Callbacks run in that thread: they must be quick and must not call `request`.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

from remuda.errors import BackendError, OutputNotAvailable, VmUnreachable

__all__ = ["Channel", "ChannelHub", "PipePair", "Transport", "hub"]

log = logging.getLogger(__name__)
MAX_WAITING = 64 << 20  # bytes one channel keeps for a peer that does not read
MAX_LINE = 256 << 20  # bytes in one message
ERRORS = {"NOFILE": OutputNotAvailable}

OnPush = Callable[["Channel", dict[str, Any]], None]
OnClose = Callable[["Channel"], None]


class Transport(Protocol):
    """A connected byte stream; `recv` and `send` are as a non-blocking socket's."""

    def fileno(self) -> int:
        """Return the descriptor to wait on for reading; for writing too, as for a socket."""

    def recv(self, size: int, /) -> bytes:
        """Return what came; BlockingIOError if nothing has, b"" at the end."""

    def send(self, data: bytes, /) -> int:
        """Write some of the data; BlockingIOError if none can be taken now."""

    def close(self) -> None:
        """Hang up."""


class PipePair:
    """A transport over two pipes, such as the standard input and output of `runner attach`."""

    def __init__(self, reader: int, writer: int) -> None:
        """Own both descriptors from now on."""
        self._reader, self._writer = reader, writer
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)

    def fileno(self) -> int:
        """Return the end to read from."""
        return self._reader

    def write_fileno(self) -> int:
        """Return the end to write to."""
        return self._writer

    def recv(self, size: int, /) -> bytes:
        """Return what came."""
        return os.read(self._reader, size)

    def send(self, data: bytes, /) -> int:
        """Write some of the data."""
        return os.write(self._writer, data)

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self._writer)


class _Answer:
    __slots__ = ("event", "message")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.message: dict[str, Any] | None = None


class Channel:
    """One connection to one runner; every method may be called from any thread."""

    def __init__(
        self,
        transport: Transport,
        name: str,
        *,
        on_push: OnPush | None = None,
        on_close: OnClose | None = None,
    ) -> None:
        """Take over a connected transport; `name` is for messages.

        `on_push` gets every message nobody asked for, in order; `on_close` is called once, last.
        """
        self.name = name
        self.hello: dict[str, Any] = {}  # what the runner said of itself; see `greet`
        self._transport, self._on_push, self._on_close = transport, on_push, on_close
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._answers: dict[int, _Answer] = {}
        self._out = bytearray()
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._closed = self._ended = False
        if isinstance(transport, socket.socket):
            transport.setblocking(False)
        self._hub = hub()
        self._hub.add(self)

    def __repr__(self) -> str:
        return f"<Channel to {self.name}{', closed' if self._closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closed

    def greet(self, *, watch: bool, since: int, timeout_s: float) -> None:
        """Have the runner say what it is, into `hello`; see `Backend.connect`.

        Hangs up, and raises what `request` does, if it does not answer or refuses.
        """
        try:
            self.hello = self.request("hello", timeout_s=timeout_s, watch=watch, since=since)
        except (BackendError, VmUnreachable):
            self.close()
            raise

    def request(self, do: str, *, timeout_s: float = 10.0, **fields: Any) -> dict[str, Any]:
        """Ask the runner and return its answer.

        Raises VmUnreachable if the line breaks or `timeout_s` passes (what was asked may be done
        all the same), BackendError if the runner refuses (then nothing was done).
        """
        if self._hub.is_own_thread():
            raise RuntimeError("a callback of a channel must not wait for an answer")
        answer = _Answer()
        with self._lock:
            number = next(self._numbers)
            self._answers[number] = answer
        try:
            self._write({"id": number, "do": do, **fields})
            if not answer.event.wait(timeout_s):
                raise VmUnreachable(f"{self.name} did not answer {do!r} within {timeout_s:g} s")
        finally:
            with self._lock:
                self._answers.pop(number, None)
        message = answer.message
        if message is None:
            raise VmUnreachable(f"the connection to {self.name} broke")
        if not message.get("ok"):
            error = ERRORS.get(message.get("code", ""), BackendError)
            raise error(f"{self.name} refused {do!r}: {message.get('error')}")
        return message

    def send(self, do: str, **fields: Any) -> None:
        """Tell the runner something; raises VmUnreachable if the line is known to be broken."""
        self._write({"do": do, **fields})

    def close(self) -> None:
        """Hang up; harmless when repeated. `on_close` is called soon, by the hub."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            answers = list(self._answers.values())
        for answer in answers:
            answer.event.set()
        self._hub.wake(self)

    # ---- the hub's side

    def _write(self, message: dict[str, Any]) -> None:
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._closed:
                raise VmUnreachable(f"the connection to {self.name} is closed")
            waiting = len(self._out) + len(data)
            if waiting <= MAX_WAITING or not self._out:
                self._out += data
        if waiting > MAX_WAITING and waiting != len(data):
            self.close()
            raise VmUnreachable(f"{self.name} has stopped reading")
        self._flush()

    def _flush(self) -> None:
        """Write what the transport takes; the hub goes on when it takes more."""
        broken = False
        with self._lock:
            try:
                while self._out and not self._closed:
                    del self._out[: self._transport.send(bytes(self._out[: 1 << 18]))]
            except BlockingIOError:
                pass
            except OSError:
                broken = True
            more = bool(self._out)
        if broken:
            self.close()
        elif more:
            self._hub.wake(self)

    def _read(self) -> None:
        try:
            data = self._transport.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._rest_size += len(data)
        if not data or self._rest_size > MAX_LINE:
            return self.close()
        self._rest.append(data)
        if b"\n" not in data:
            return
        *lines, rest = b"".join(self._rest).split(b"\n")
        self._rest, self._rest_size = [rest], len(rest)
        for line in lines:
            if not self._closed:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            number = message.get("re")
        except (ValueError, AttributeError):
            log.error("%s says what is no message: %.100r", self.name, line)
            return self.close()
        if number is not None:
            with self._lock:
                answer = self._answers.pop(number, None)
            if answer:
                answer.message = message
                answer.event.set()
        elif "push" in message and self._on_push:
            try:
                self._on_push(self, message)
            except Exception:
                log.exception("the receiver of what %s pushes failed", self.name)

    def _interests(self) -> dict[int, int]:
        """Return the events to wait for, by descriptor; none once closed."""
        if self._closed:
            return {}
        interests = {self._transport.fileno(): selectors.EVENT_READ}
        if self._out:
            fd = getattr(self._transport, "write_fileno", self._transport.fileno)()
            interests[fd] = interests.get(fd, 0) | selectors.EVENT_WRITE
        return interests

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._transport.close()
        if self._on_close:
            try:
                self._on_close(self)
            except Exception:
                log.exception("the receiver of the end of %s failed", self.name)


class ChannelHub:
    """The thread that reads all channels of this process, and writes what could not be at once."""

    def __init__(self) -> None:
        """Start the thread."""
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._changed: set[Channel] = set()
        self._known: dict[Channel, dict[int, int]] = {}  # the events waited for, by descriptor
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        os.set_blocking(self._wake, False)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="remuda-channels", daemon=True)
        self._thread.start()

    def is_own_thread(self) -> bool:
        """Tell whether the caller is a callback."""
        return threading.current_thread() is self._thread

    def add(self, channel: Channel) -> None:
        """Read this channel from now on."""
        self.wake(channel)

    def wake(self, channel: Channel) -> None:
        """Look at this channel again: it is new, has something to write, or was closed."""
        with self._lock:
            self._changed.add(channel)
        try:
            os.write(self._waker, b"w")
        except BlockingIOError:
            pass

    def _run(self) -> None:
        while True:
            for key, events in self._selector.select():
                channel: Channel | None = key.data
                if channel is None:
                    os.read(self._wake, 1 << 16)
                    continue
                if events & selectors.EVENT_WRITE:
                    channel._flush()
                if events & selectors.EVENT_READ and not channel.closed:
                    channel._read()
                self._settle(channel)
            with self._lock:
                changed, self._changed = self._changed, set()
            for channel in changed:
                self._settle(channel)

    def _settle(self, channel: Channel) -> None:
        """Wait for exactly what the channel needs now; end it if it is closed."""
        wanted, known = channel._interests(), self._known.pop(channel, {})
        for fd in known.keys() - wanted.keys():
            self._selector.unregister(fd)
        for fd, events in wanted.items():
            if fd not in known:
                self._selector.register(fd, events, channel)
            elif known[fd] != events:
                self._selector.modify(fd, events, channel)
        if wanted:
            self._known[channel] = wanted
        else:
            channel._end()


_hub: tuple[int, ChannelHub] | None = None
_hub_lock = threading.Lock()


def hub() -> ChannelHub:
    """Return this process's hub; a forked child makes its own."""
    global _hub
    with _hub_lock:
        if _hub is None or _hub[0] != os.getpid():
            _hub = (os.getpid(), ChannelHub())
        return _hub[1]


def _after_fork() -> None:
    global _hub, _hub_lock
    _hub, _hub_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
