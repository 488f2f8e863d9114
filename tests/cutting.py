"""A line to a server of this machine that is cut at will, and counts what goes over it."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Cutting:
    """Forwards connections to the port `to`; `cut` says when all break, `hush` that none answers."""

    def __init__(self) -> None:
        """Listen."""
        self.to = 0
        self.up = self.down = self.cuts = 0
        self._up_left = self._down_left = -1
        self._hushed = False
        self.asked = False  # whether something was said to the server last, not by it
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, *, up_after: int = -1, down_after: int = -1) -> None:
        """Have everything break once so many bytes more went to the server, or came from it."""
        with self._lock:
            self.up = self.down = 0
            self._up_left, self._down_left = up_after, down_after

    def hush(self) -> None:
        """Let nothing that the server says through any more."""
        with self._lock:
            self._hushed = True

    def __enter__(self) -> Cutting:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        self._break()

    def _accept(self) -> None:
        while True:
            try:
                mine = self._listener.accept()[0]
            except OSError:
                return
            try:
                theirs = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                mine.close()
                continue
            with self._lock:
                self._open |= {mine, theirs}
            for source, target, way in ((mine, theirs, "up"), (theirs, mine, "down")):
                threading.Thread(target=self._pass, args=(source, target, way), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._counted(way, len(data)):
                    self._break()
                    return
                if self._passes(way):
                    target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _passes(self, way: str) -> bool:
        """Return whether what is said on that way is handed on."""
        with self._lock:
            if way == "up":
                self.asked = True
            elif not self._hushed:
                self.asked = False
            return way == "up" or not self._hushed

    def _counted(self, way: str, size: int) -> bool:
        """Count; True if this is where it breaks."""
        with self._lock:
            left = self._up_left if way == "up" else self._down_left
            if way == "up":
                self.up += size
            else:
                self.down += size
            if left < 0:
                return False
            left = max(0, left - size)
            if left == 0:
                self.cuts += 1
                left = -1
            if way == "up":
                self._up_left = left
            else:
                self._down_left = left
            return left < 0

    def _break(self) -> None:
        with self._lock:
            broken, self._open = self._open, set()
        for each in broken:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
