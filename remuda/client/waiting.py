"""Waiting for jobs to end: pushed by the database, one listening thread a client.

A notification only says where to look: the rows tell what is true. They are looked at when somebody
begins to wait (with LISTEN already active), when ids are notified, after a reconnection, and every
few seconds in case a notification was lost.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from remuda.errors import RemudaError
from remuda.models.database import DONE_CHANNEL, Listener
from remuda.models.outputs import final_records

if TYPE_CHECKING:
    from remuda.client.context import Context

log = logging.getLogger(__name__)

_POLL_S = 5.0
_CHECK_S = 2.0  # whether the embedded default is still alive
_PATIENCE_S = 60.0  # an outage shorter than this only delays whoever waits
_MOST = 2000  # rows a query

Record = Mapping[str, Any]


class Ticket:
    """Jobs somebody waits for; their final records come through `take`, in order of their ends."""

    def __init__(self, room: WaitingRoom, job_ids: Iterable[int]) -> None:
        """Made by `WaitingRoom.watch`."""
        self._room = room
        self._ready: deque[Record] = deque()
        self._changed = threading.Condition(room.lock)
        self._error: RemudaError | None = None
        self.pending = set(job_ids)

    def take(self, timeout_s: float | None) -> list[Record]:
        """Wait for ends and return all there are; an empty list when none came in time.

        Raises DatabaseUnavailable when the database stays away.
        """
        with self._room.lock:
            self._changed.wait_for(lambda: self._ready or self._error, timeout_s)
            if self._error is not None and not self._ready:
                raise self._error
            found = list(self._ready)
            self._ready.clear()
            return found

    def close(self) -> None:
        """Stop waiting."""
        self._room.forget(self)

    def deliver(self, record: Record) -> None:
        """Hand over a final record; the room's lock is held."""
        if record["id"] in self.pending:
            self.pending.discard(record["id"])
            self._ready.append(record)
            self._changed.notify_all()

    def fail(self, error: RemudaError) -> None:
        """Have the waiter raise `error`; the room's lock is held."""
        self._error = error
        self._changed.notify_all()


class WaitingRoom:
    """All tickets of a client, and the thread that serves them; it starts with the first."""

    def __init__(self, context: Context) -> None:
        """Start nothing yet."""
        self._context = context
        self.lock = threading.RLock()
        self._tickets: dict[int, list[Ticket]] = {}
        self._thread: threading.Thread | None = None
        self._listening = False
        self._closed = threading.Event()
        self._bell = -1  # written to, to wake the thread
        self._trouble_since: float | None = None

    def watch(self, job_ids: Iterable[int]) -> Ticket:
        """Return a ticket for jobs that may have ended already."""
        ticket = Ticket(self, job_ids)
        ids = list(ticket.pending)
        with self.lock:
            for job_id in ids:
                self._tickets.setdefault(job_id, []).append(ticket)
            if self._thread is None:
                self._start()
            listening = self._listening
        # Not listening yet: the thread looks at all tickets as soon as it is.
        if listening:
            try:
                self._look(ids)
            except BaseException:
                ticket.close()
                raise
        return ticket

    def forget(self, ticket: Ticket) -> None:
        """Take a ticket out."""
        with self.lock:
            for job_id in ticket.pending:
                left = [t for t in self._tickets.pop(job_id, ()) if t is not ticket]
                if left:
                    self._tickets[job_id] = left

    def close(self) -> None:
        """End the thread and its connection; tickets still waiting fail."""
        with self.lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._closed.set()
            self._listening = False
            with suppress(OSError):
                os.write(self._bell, b"x")
            self._fail(RemudaError("the client was closed"))
        if thread is not threading.current_thread():
            thread.join(timeout=10)

    def _start(self) -> None:
        self._closed = threading.Event()
        ear, self._bell = os.pipe()
        self._thread = threading.Thread(
            target=self._run,
            args=(self._closed, ear, self._bell),
            name="remuda-waiting",
            daemon=True,
        )
        self._thread.start()

    def _run(self, closed: threading.Event, ear: int, bell: int) -> None:
        pause = 0.05
        try:
            while not closed.is_set():
                try:
                    self._listen(closed, ear)
                except RemudaError as error:
                    self._note(error)
                except Exception as error:
                    log.exception("waiting for jobs failed and goes on")
                    self._note(RemudaError(f"waiting for jobs failed: {error}"))
                else:
                    pause = 0.05
                    continue
                closed.wait(pause)
                pause = min(2.0, pause * 2)
                try:
                    self._context.revive()
                except RemudaError as error:
                    self._note(error)
        finally:
            os.close(ear)
            os.close(bell)

    def _listen(self, closed: threading.Event, ear: int) -> None:
        """Serve until closed; raises when the connection drops."""
        listener = Listener(self._context.url, [DONE_CHANNEL])
        try:
            self._serve(listener, closed, ear)
        finally:
            with self.lock:
                if not closed.is_set():
                    self._listening = False
            listener.close()

    def _serve(self, listener: Listener, closed: threading.Event, ear: int) -> None:
        with self.lock:
            self._listening = not closed.is_set()
        poll = select.poll()
        poll.register(listener.fileno(), select.POLLIN)
        poll.register(ear, select.POLLIN)
        next_look = next_check = 0.0
        while not closed.is_set():
            now = time.monotonic()
            if now >= next_look:
                self._look(self._waited_for())
                next_look = time.monotonic() + max(_POLL_S, 50 * (time.monotonic() - now))
            if now >= next_check:
                if self._waited_for():
                    self._context.revive()
                self._trouble_since = None
                next_check = time.monotonic() + _CHECK_S
            pause = max(0.0, min(next_look, next_check) - time.monotonic())
            poll.poll(pause * 1000)
            self._look(self._ended(listener.wait(0.0)))

    def _waited_for(self) -> list[int]:
        with self.lock:
            return list(self._tickets)

    def _ended(self, notes: Sequence[tuple[str, str]]) -> list[int]:
        """Return the ids of notifications that somebody waits for."""
        ids = [int(i) for _, payload in notes for i in payload.split(",") if i.isdigit()]
        with self.lock:
            return [i for i in ids if i in self._tickets]

    def _look(self, job_ids: Sequence[int]) -> None:
        """Hand the records of those that have ended to their tickets; one query for many."""
        for start in range(0, len(job_ids), _MOST):
            some = job_ids[start : start + _MOST]
            records = self._context.read(lambda c, some=some: final_records(c, some))  # type: ignore[misc]
            with self.lock:
                for record in records:
                    for ticket in self._tickets.pop(record["id"], ()):
                        ticket.deliver(record)

    def _note(self, error: RemudaError) -> None:
        """Remember that something is wrong; those who wait are told when it stays so."""
        now = time.monotonic()
        if self._trouble_since is None:
            self._trouble_since = now
            log.warning("waiting for jobs is interrupted: %s", error)
        elif now - self._trouble_since > _PATIENCE_S:
            with self.lock:
                self._fail(error)

    def _fail(self, error: RemudaError) -> None:
        for ticket in {id(t): t for ts in self._tickets.values() for t in ts}.values():
            ticket.fail(error)
        self._tickets.clear()
