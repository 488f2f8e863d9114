"""What all handles of one client share: its settings, database, storage and waiting room."""

from __future__ import annotations

import getpass
import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from psycopg import errors as pg_errors
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from remuda import system
from remuda.client.lease_room import LeaseRoom
from remuda.client.waiting import WaitingRoom
from remuda.config import Settings
from remuda.errors import BadInput, DatabaseUnavailable
from remuda.models import requests
from remuda.models.database import make_engine, transact
from remuda.storage import Storage

T = TypeVar("T")

_TRIES = 5
_RETRYABLE = (pg_errors.SerializationFailure, pg_errors.DeadlockDetected)
_contexts: weakref.WeakSet[Context] = weakref.WeakSet()


class Context:
    """One client's connections; thread-safe, and usable after a fork in the child too."""

    def __init__(self, settings: Settings, *, owner: str | None, start: bool) -> None:
        """With `start` the embedded default, if that is what is configured, is brought up."""
        self.settings = settings
        self.owner = owner or settings.owner or _login()
        if len(self.owner.encode("utf-8", "replace")) > 200 or "\0" in self.owner:
            raise BadInput("the owner's name must have at most 200 bytes")
        self.starts = start
        self.owner_id: int | None = None  # known once something of theirs was committed
        self._lock = threading.Lock()
        self._connect(system.bring_up(settings) if start else system.database_url(settings))
        self.waiting = WaitingRoom(self)
        self.leases = LeaseRoom(self)
        _contexts.add(self)

    @cached_property
    def storage(self) -> Storage:
        """Where inputs and results are kept."""
        return Storage(self.settings.storage)

    @property
    def url(self) -> str:
        """The database's URL; may hold a password."""
        return self._url

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run queries, each on its own; tried again when the connection drops.

        Raises DatabaseUnavailable.
        """
        try:
            return transact(self._reader, work)
        except DatabaseUnavailable:
            if not self.revive():
                raise
            return transact(self._reader, work)

    def commit(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction, exactly once, also when the connection drops in COMMIT.

        Deadlocks and drops are tried again, so `work` must do nothing but SQL. Raises
        DatabaseUnavailable; nothing was changed then unless its message says that it is unknown.
        """
        for attempt in range(1, _TRIES + 1):
            done: list[tuple[T, str]] = []

            def noted(connection: Connection, done: list[tuple[T, str]] = done) -> None:
                done.append((work(connection), requests.this_transaction(connection)))

            try:
                transact(self._engine, noted, tries=1)
                return done[0][0]
            except DatabaseUnavailable:
                if done and self._was_committed(done[0][1]):
                    return done[0][0]
                if attempt == _TRIES or not (self._dropped() or self.revive()):
                    raise
            except DBAPIError as error:
                if attempt == _TRIES or not isinstance(error.orig, _RETRYABLE):
                    raise
            time.sleep(0.01 * 2**attempt)
        raise AssertionError("unreachable")

    def revive(self) -> bool:
        """Start again what died of the embedded default; False if that is not for us to do."""
        if not (self.starts and self.settings.embedded):
            return False
        url = system.keep_up(self.settings)
        with self._lock:
            if url != self._url:
                self._engine.dispose()
                self._connect(url)
        return True

    def close(self) -> None:
        """Stop waiting and give the connections back; a later call opens new ones."""
        self.waiting.close()
        self.leases.close()
        self._engine.dispose()

    def after_fork(self) -> None:
        """Leave the parent's connections alone; called in the child."""
        self._lock = threading.Lock()
        self._engine.dispose(close=False)
        self.waiting = WaitingRoom(self)
        self.leases = LeaseRoom(self)

    def _connect(self, url: str) -> None:
        self._url = url
        self._engine: Engine = make_engine(url)
        self._reader: Engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    def _dropped(self) -> bool:
        """Tell whether the database answers again, after a connection was lost."""
        try:
            transact(self._reader, requests.this_transaction, tries=2)
            return True
        except DatabaseUnavailable:
            return False

    def _was_committed(self, transaction: str) -> bool:
        """Find out how a transaction ended whose COMMIT got no answer."""
        deadline = time.monotonic() + 10
        while True:
            try:
                state = self.read(lambda c: requests.transaction_state(c, transaction))
            except DatabaseUnavailable as error:
                raise DatabaseUnavailable(
                    f"{error.message}; it is unknown whether the last change was made",
                    hint="look with `remuda job list`, or submit with an idempotency_key",
                ) from error
            if state != "in progress":
                return state == "committed"
            if time.monotonic() > deadline:
                raise DatabaseUnavailable("the database does not finish a transaction")
            time.sleep(0.05)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no entry for this user id
        return f"uid-{os.getuid()}"


def _after_fork() -> None:
    for context in list(_contexts):
        context.after_fork()


os.register_at_fork(after_in_child=_after_fork)
