"""The one thread in which all simulated VMs of a process live: their connections and their time."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import socket
import threading
from collections.abc import Callable

from remuda.workers.onvm.connection import Connection
from remuda.workers.onvm.processes import now

__all__ = ["Loop", "Timer"]

log = logging.getLogger(__name__)


class Timer:
    """Something that is to be done at a time; `cancel` it, and it never is."""

    __slots__ = ("act", "at")

    def __init__(self, at: float, act: Callable[[], None]) -> None:
        """Do it at `at` of the clock `now`."""
        self.at = at
        self.act: Callable[[], None] | None = act

    def cancel(self) -> None:
        """Forget it."""
        self.act = None


class Loop:
    """Serves sockets and timers. Everything it calls, it calls holding `lock`.

    Whoever touches simulated VMs from another thread takes the lock too.
    """

    def __init__(self) -> None:
        """Start the thread with the first thing to do."""
        self.lock = threading.RLock()
        self._poll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, act: Callable[[], None]) -> Timer:
        """Have something done in so many seconds."""
        timer = Timer(now() + seconds, act)
        with self.lock:
            heapq.heappush(self._timers, (timer.at, next(self._numbers), timer))
            first = self._timers[0][2] is timer
        self._start()
        if first and threading.current_thread() is not self._thread:
            os.eventfd_write(self._wake, 1)
        return timer

    def serve(
        self,
        handle: Callable[[Connection, bytes], None],
        forget: Callable[[Connection], None],
    ) -> tuple[socket.socket, Connection]:
        """Return a connected pair: a socket for the controller, and the VM's end of it."""
        here, there = socket.socketpair()
        with self.lock:

            def gone(connection: Connection) -> None:
                self._connections.pop(connection.fd, None)
                forget(connection)

            connection = Connection(there, self._poll, handle, gone)
            self._connections[connection.fd] = connection
        self._start()
        return here, connection

    def _start(self) -> None:
        with self.lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="remuda-noop", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self.lock:
                due = self._timers[0][0] - now() if self._timers else -1.0
            # epoll counts whole milliseconds: rounded up, or the loop spins through the last one
            events = self._poll.poll(max(0.0, due) + 0.0005 if self._timers else None)
            with self.lock:
                for fd, event in events:
                    self._turn(fd, event)
                self._tell_time()

    def _turn(self, fd: int, event: int) -> None:
        if fd == self._wake:
            os.eventfd_read(self._wake)
            return
        connection = self._connections.get(fd)
        if connection is None:
            return
        try:
            connection.ready(event)
        except Exception:
            log.exception("a simulated VM failed; its channel is closed")
            connection.close()

    def _tell_time(self) -> None:
        current = now()
        while self._timers and self._timers[0][0] <= current:
            act = heapq.heappop(self._timers)[2].act
            if act is None:
                continue
            try:
                act()
            except Exception:
                log.exception("what a simulated VM was to do failed")
