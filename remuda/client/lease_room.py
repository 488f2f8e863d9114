"""What keeps a client's leases: one thread renews them all, and hears of those it waits for.

A notification only says where to look. Without the database leases are kept as long as they last.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from remuda.errors import RemudaError
from remuda.models import lease_requests, leases
from remuda.models.database import LEASE_CHANNEL, Listener

if TYPE_CHECKING:
    from datetime import datetime

    from remuda.client.context import Context

log = logging.getLogger(__name__)

_REQUESTS_S = lease_requests.LIFE_S / 3
_PAUSE_S = 0.2  # between two tries to listen


class Held(Protocol):
    """A lease that is renewed here; times are those of `time.monotonic`."""

    id: int
    token: str
    ttl_s: float
    held_until: float
    renew_at: float

    def renewed(self, expires_at: datetime, *, began: float) -> None:
        """Note that it was renewed by a call that began then."""

    def over(self) -> None:
        """Note that it is over."""


class LeaseRoom:
    """A client's leases and the requests it waits for; the thread starts with the first."""

    def __init__(self, context: Context) -> None:
        """Start nothing yet."""
        self._context = context
        self._lock = threading.RLock()
        self._held: dict[int, Held] = {}
        self._waiting: dict[int, threading.Event] = {}
        self._requests_at = 0.0
        self._next_at = 0.0
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._bell = -1

    def hold(self, lease: Held) -> None:
        """Renew a lease from now on."""
        with self._lock:
            self._held[lease.id] = lease
            self._wake(lease.renew_at)

    def drop(self, lease: Held) -> None:
        """Renew a lease no more."""
        with self._lock:
            self._held.pop(lease.id, None)

    def watch(self, request_id: int) -> threading.Event:
        """Return an event that is set whenever a request is to be looked at."""
        with self._lock:
            found = self._waiting[request_id] = threading.Event()
            self._requests_at = self._requests_at or time.monotonic() + _REQUESTS_S
            self._wake(self._requests_at)
            return found

    def forget(self, request_id: int) -> None:
        """Renew a request no more."""
        with self._lock:
            self._waiting.pop(request_id, None)
            if not self._waiting:
                self._requests_at = 0.0

    def close(self) -> None:
        """End the thread; leases still held last as long as they do."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._closed.set()
            self._ring()
        if thread is not threading.current_thread():
            thread.join(timeout=10)

    def _wake(self, at: float) -> None:
        """Have the thread, made if there is none, look no later than `at`; the lock is held."""
        if self._thread is None:
            self._closed = threading.Event()
            ear, self._bell = os.pipe()
            self._next_at = 0.0
            self._thread = threading.Thread(
                target=self._run,
                args=(self._closed, ear, self._bell),
                name="remuda-leases",
                daemon=True,
            )
            self._thread.start()
        elif at < self._next_at:
            self._ring()

    def _ring(self) -> None:
        with suppress(OSError):
            os.write(self._bell, b"x")

    def _run(self, closed: threading.Event, ear: int, bell: int) -> None:
        listener: Listener | None = None
        try:
            while not closed.is_set():
                try:
                    if listener is None:
                        listener = Listener(self._context.url, [LEASE_CHANNEL])
                        self._look_at_all()
                    self._hear(listener, ear)
                except RemudaError as error:
                    log.warning("not hearing of leases: %s", error)
                    if listener is not None:
                        listener.close()
                        listener = None
                    self._guarded(self._context.revive)
                    closed.wait(_PAUSE_S)
                except Exception:
                    log.exception("hearing of leases failed and goes on")
                    closed.wait(_PAUSE_S)
                if not self._guarded(self._renew):
                    closed.wait(_PAUSE_S)
        finally:
            if listener is not None:
                listener.close()
            os.close(ear)
            os.close(bell)

    def _hear(self, listener: Listener, ear: int) -> None:
        """Wait until something is to be renewed; take what is told meanwhile."""
        with self._lock:
            due = [lease.renew_at for lease in self._held.values()]
            due += [self._requests_at] if self._waiting else []
            self._next_at = min(due, default=time.monotonic() + 3600)
            pause = max(0.0, self._next_at - time.monotonic())
        poll = select.poll()
        poll.register(listener.fileno(), select.POLLIN)
        poll.register(ear, select.POLLIN)
        for descriptor, _ in poll.poll(pause * 1000):
            if descriptor == ear:
                os.read(ear, 4096)
        for _, payload in listener.wait(0.0):
            what, _, number = payload.partition(" ")
            if number.isdigit():
                self._told(what, int(number))

    def _told(self, what: str, number: int) -> None:
        with self._lock:
            event = self._waiting.get(number) if what == "served" else None
            lease = self._held.pop(number, None) if what == "over" else None
        if event is not None:
            event.set()
        if lease is not None:
            lease.over()

    def _look_at_all(self) -> None:
        """Have everything looked at: nothing is known of what was told before."""
        with self._lock:
            for event in self._waiting.values():
                event.set()
            for lease in self._held.values():
                lease.renew_at = min(lease.renew_at, time.monotonic() + lease.ttl_s / 3)

    def _renew(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [lease for lease in self._held.values() if lease.renew_at <= now]
            requests = list(self._waiting) if self._requests_at <= now else []
            if requests:
                self._requests_at = now + _REQUESTS_S
        if requests:
            self._guarded(
                lambda: self._context.commit(lambda c: lease_requests.renew_requests(c, requests))
            )
        if due:
            self._renew_leases(due, now)

    def _renew_leases(self, due: list[Held], now: float) -> None:
        wanted = [(lease.id, lease.token, lease.ttl_s) for lease in due]
        try:
            kept = self._context.commit(lambda c: leases.renew_many(c, wanted))
        except RemudaError as error:
            log.warning("%d leases cannot be renewed: %s", len(due), error)
            for lease in due:
                lease.renew_at = time.monotonic() + max(0.1, lease.ttl_s / 30)
            self._lose([lease for lease in due if lease.held_until <= time.monotonic()])
            return
        for lease in due:
            if lease.id in kept:
                lease.renewed(kept[lease.id], began=now)
        self._lose([lease for lease in due if lease.id not in kept])

    def _lose(self, gone: list[Held]) -> None:
        for lease in gone:
            with self._lock:
                held = self._held.pop(lease.id, None)
            if held is not None:
                lease.over()

    @staticmethod
    def _guarded(work: Callable[[], object]) -> bool:
        """Do it; False when it failed, which must not end the thread that keeps all the leases."""
        try:
            work()
        except RemudaError as error:
            log.warning("keeping leases: %s", error)
        except Exception:
            log.exception("keeping leases failed and goes on")
        else:
            return True
        return False
