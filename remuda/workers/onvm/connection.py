"""One controller's connection to the runner: JSON lines, never blocking, never unbounded."""

from __future__ import annotations

import collections
import select
import socket
from collections.abc import Callable
from typing import Any

SLOW = 1 << 20  # bytes: one this far behind is pushed nothing until it has read
DEAD = 64 << 20  # bytes: one this far behind, or sending so long a line, is dropped


class Connection:
    """A socket in the runner's loop. `closed` is set once and for all."""

    def __init__(
        self,
        sock: socket.socket,
        poll: Any,
        handle: Callable[[Connection, bytes], None],
        forget: Callable[[Connection], None],
    ) -> None:
        """Serve the socket: every line goes to `handle`, the end to `forget`."""
        self.sock, self.poll, self.handle, self.forget = sock, poll, handle, forget
        self.fd, self.closed = sock.fileno(), False
        self.out, self.awaits = bytearray(), False
        self.parts: list[bytes] = []  # of a line not yet whole
        self.unread = 0  # their bytes
        self.backlog: collections.deque[str] = collections.deque()  # entries to push: the watcher's
        self.follows: dict[int, tuple[Any, list[int]]] = {}  # attempt: its job, offsets pushed to
        sock.setblocking(False)
        poll.register(sock, select.EPOLLIN)

    @property
    def slow(self) -> bool:
        return len(self.out) > SLOW

    def ready(self, event: int) -> None:
        """Write what waits; read what came. The answers go out with the next `flush`."""
        if event & select.EPOLLOUT:
            self.flush()
        if self.closed:
            return
        try:
            data = self.sock.recv(1 << 18) if event & ~select.EPOLLOUT else None
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data == b"" or self.unread > DEAD:
            return self.close()
        if data:
            self.parts.append(data)
            self.unread += len(data)
            if b"\n" in data:
                *lines, rest = b"".join(self.parts).split(b"\n")
                self.parts, self.unread = [rest], len(rest)
                for line in lines:
                    self.handle(self, line)

    def send(self, text: str) -> None:
        """Queue a line for `flush`."""
        self.out += text.encode() + b"\n"

    def flush(self) -> None:
        """Write as much as the peer takes now."""
        try:
            while self.out and not self.closed:
                del self.out[: self.sock.send(self.out)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        if len(self.out) > DEAD:
            self.close()
        if not self.closed and self.awaits != bool(self.out):
            self.awaits = bool(self.out)
            self.poll.modify(self.sock, select.EPOLLIN | (select.EPOLLOUT if self.awaits else 0))

    def close(self) -> None:
        """Hang up; harmless when repeated."""
        if not self.closed:
            self.closed = True
            self.forget(self)
            self.sock.close()
        self.out.clear()
        self.follows.clear()
