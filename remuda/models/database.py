"""Connections to PostgreSQL: engines, short transactions that retry, LISTEN."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg
from psycopg import errors as pg_errors
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from remuda.errors import ConfigError, DatabaseUnavailable

log = logging.getLogger(__name__)

WAKE_CHANNEL = "remuda_wake"  # to the workers: dispatch, cancel, lease, pool, vm
DONE_CHANNEL = "remuda_done"  # to waiting producers: ids of ended jobs, "1,2,3"
LEASE_CHANNEL = "remuda_lease"  # to who waits for or holds a lease: "served ID", "over ID"
OUTPUT_CHANNEL = "remuda_output"  # to followers: "job id"

_RETRYABLE = (pg_errors.SerializationFailure, pg_errors.DeadlockDetected)
T = TypeVar("T")


def make_engine(url: str, *, pool_size: int = 5) -> Engine:
    """Return an engine for `url`, any spelling of a PostgreSQL URL; connects lazily.

    `pool_size` connections are kept, as many again opened in need. Make it after a fork.
    Raises ConfigError when the URL is not PostgreSQL's.
    """
    return create_engine(
        sqlalchemy_url(url),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=False,
        pool_recycle=1800,
        hide_parameters=True,
        connect_args={"connect_timeout": 10, "application_name": "remuda"},
    )


def sqlalchemy_url(url: str) -> str:
    """Return `url` with the psycopg driver named; raises ConfigError for other databases."""
    try:
        parsed = make_url(url)
    except Exception:
        raise ConfigError(
            "database_url is not a URL", hint="postgresql://user:password@host:5432/database"
        ) from None
    if parsed.get_backend_name() != "postgresql":
        raise ConfigError(
            f"database_url names {parsed.get_backend_name()}, not postgresql",
            hint="Remuda needs PostgreSQL",
        )
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def transact(engine: Engine, work: Callable[[Connection], T], *, tries: int = 5) -> T:
    """Run `work` in one transaction and return its result.

    Deadlocks, serialization failures and a dropped connection are tried again up to `tries`
    times, so `work` must do nothing but SQL. Raises DatabaseUnavailable when the server is away.
    """
    for attempt in range(1, tries + 1):
        try:
            with engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            again = isinstance(error.orig, _RETRYABLE) or error.connection_invalidated
            if not again or attempt == tries:
                raise _translated(error) from error
            time.sleep(random.uniform(0, 0.02 * 2**attempt))
    raise AssertionError("unreachable")


def _translated(error: DBAPIError) -> Exception:
    if isinstance(error, OperationalError) and (
        error.connection_invalidated or not getattr(error.orig, "sqlstate", None)
    ):
        return DatabaseUnavailable(
            f"the database does not answer: {first_line(error.orig)}",
            hint="is PostgreSQL up? `remuda doctor` looks",
        )
    return error


def first_line(error: object) -> str:
    """Return the first line of an exception's text."""
    return str(error).strip().split("\n", 1)[0]


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a connection for queries; raises DatabaseUnavailable when the server is away."""
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise _translated(error) from error


def rows(connection: Connection, statement: str, **parameters: Any) -> Sequence[Mapping[str, Any]]:
    """Run a textual statement and return its rows as mappings."""
    found = connection.execute(text(statement), parameters).mappings()
    return [dict(row) for row in found.all()]


def database_time(connection: Connection) -> datetime:
    """Return what time it is by the database's clock, in UTC."""
    now: datetime = connection.execute(text("SELECT now()")).scalar_one()
    return now.astimezone(UTC)


class Listener:
    """One direct connection that LISTENs; for one thread.

    Where LISTEN is impossible (a transaction-pooling proxy swallows notifications) `wait` only
    times out, and callers look at the rows anyway: notifications are wake-ups, never the truth.
    """

    def __init__(self, url: str, channels: Sequence[str]) -> None:
        """Connect to `url` and LISTEN on `channels`; raises DatabaseUnavailable."""
        plain = make_url(sqlalchemy_url(url)).set(drivername="postgresql")
        try:
            self._connection = psycopg.connect(
                plain.render_as_string(hide_password=False),
                autocommit=True,
                connect_timeout=10,
                application_name="remuda listener",
                keepalives_idle=30,
            )
            for channel in channels:
                self._connection.execute(f'LISTEN "{channel}"')
        except psycopg.OperationalError as error:
            raise DatabaseUnavailable(
                f"the database does not answer: {first_line(error)}",
                hint="is PostgreSQL up? `remuda doctor` looks",
            ) from None

    def wait(self, timeout_s: float) -> list[tuple[str, str]]:
        """Return the (channel, payload) pairs that came; blocks until one does or the time is up.

        Raises DatabaseUnavailable when the connection is lost.
        """
        try:
            found = [
                (n.channel, n.payload)
                for n in self._connection.notifies(timeout=timeout_s, stop_after=1)
            ]
            if found:
                found += [(n.channel, n.payload) for n in self._connection.notifies(timeout=0)]
            return found
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise DatabaseUnavailable(f"lost the database: {first_line(error)}") from None

    def fileno(self) -> int:
        """Return the socket's descriptor, for select."""
        return self._connection.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
