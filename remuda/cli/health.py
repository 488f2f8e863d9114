"""What runs and what answers: looked at by `status`, `doctor` and `up`; nothing here starts it."""

# kombu ships py.typed but hardly an annotation.
# mypy: allow-untyped-calls
from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remuda.errors import BrokerUnavailable, DatabaseUnavailable, Refused, RemudaError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from remuda.config import Settings

SWEEP_LATE_S = 15.0  # beat sends the sweep looked at every three seconds
_CONNECT_S = 3.0


@dataclass(frozen=True)
class Process:
    """A process of this machine; the fields from `pid` on are 0 unless it runs."""

    name: str
    running: bool
    pid: int = 0
    memory_bytes: int = 0
    cpu_s: float = 0.0


def safe_url(url: str) -> str:
    """Return the URL without user, password and query: fit to be shown."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(not a URL)"
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme.partition('+')[0]}://{shown}{f':{port}' if port else ''}{parts.path}"


def broker_url(settings: Settings) -> str:
    """Return the broker's URL, fit to be shown; of the embedded one, its folder."""
    if settings.broker.startswith("filesystem:"):
        return f"filesystem://{settings.broker_dir}"
    return safe_url(settings.broker)


def processes(settings: Settings) -> list[Process]:
    """Return the processes that `remuda up` starts on this machine, running or not."""
    from remuda import embedded

    found = []
    if settings.embedded:
        server = embedded.server_status(settings)
        found.append(Process("postgres", server.ready, server.pid, server.memory_bytes))
    for process in embedded.process_status(settings):
        found.append(
            Process(process.name, process.running, process.pid, process.rss_bytes, process.cpu_s)
        )
    return found


@contextmanager
def database(settings: Settings) -> Iterator[Engine]:
    """Give an engine for the database; it connects when first used.

    Raises DatabaseUnavailable when the embedded server is not running: nothing is started.
    """
    from remuda import embedded
    from remuda.models.database import make_engine
    from remuda.system import database_url

    url = database_url(settings)
    if settings.embedded and not embedded.server_status(settings).ready:
        raise DatabaseUnavailable("the embedded database is not running", hint="`remuda up`")
    engine = make_engine(url, pool_size=1)
    try:
        yield engine
    finally:
        engine.dispose()


def query(engine: Engine, statement: str) -> list[dict[str, Any]]:
    """Run a query and return its rows; raises DatabaseUnavailable."""
    from remuda.models.database import rows, transact

    def work(connection: Connection) -> list[dict[str, Any]]:
        return [dict(row) for row in rows(connection, statement)]

    return transact(engine, work, tries=1)


def counts(engine: Engine) -> tuple[Counter[str], Counter[str]]:
    """Return how many jobs, and how many VMs not yet gone, are in each state."""
    jobs = query(engine, "SELECT state, count(*) AS n FROM jobs GROUP BY state ORDER BY state")
    vms = query(
        engine,
        "SELECT state, count(*) AS n FROM vms WHERE state <> 'HALTED' GROUP BY state ORDER BY state",
    )
    return Counter({r["state"]: r["n"] for r in jobs}), Counter({r["state"]: r["n"] for r in vms})


def check_schema(engine: Engine) -> str:
    """Return the schema's revision; raises Refused unless it is this release's."""
    from remuda.system import newest_revision, present_revision

    present, wanted = present_revision(engine), newest_revision()
    if present != wanted:
        raise Refused(
            f"the schema is at revision {present or 'none'}, this release needs {wanted}",
            hint="`remuda db upgrade`",
        )
    return wanted


def last_sweep_age_s(engine: Engine) -> float | None:
    """Return how long ago a worker last did a sweep that beat had sent; None if never."""
    found = query(
        engine,
        "SELECT extract(epoch FROM now() - last_run_at)::float8 AS age FROM sweeps"
        " WHERE name = 'declare_stalled'",
    )
    return float(found[0]["age"]) if found else None


def check_broker(settings: Settings) -> None:
    """Raise BrokerUnavailable unless the broker takes a connection; makes nothing."""
    from kombu.connection import Connection as BrokerConnection

    from remuda import broker

    options: dict[str, Any] = {}
    broker.register()
    try:
        if settings.broker.startswith("filesystem:"):
            if not settings.broker_dir.exists():
                raise BrokerUnavailable(
                    f"the broker's folder {settings.broker_dir} is not there yet",
                    hint="`remuda up` makes it",
                )
            options = broker.transport_options(settings)
        with BrokerConnection(
            settings.broker, connect_timeout=_CONNECT_S, transport_options=options
        ) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_CONNECT_S)
            connection.default_channel  # noqa: B018 - opening it logs in
    except RemudaError:
        raise
    except Exception as error:  # each transport has errors of its own
        detail = (str(error) or type(error).__name__).split("\n", 1)[0]
        raise BrokerUnavailable(
            f"the broker at {broker_url(settings)} does not answer: {detail}",
            hint="is it up, and REMUDA_BROKER_URL right?",
        ) from None


def ping_workers(*, timeout_s: float, wanted: int = 1) -> list[str]:
    """Ask all workers through the broker; return the names of those that answered in time.

    Returns as soon as `wanted` of them have.
    """
    from remuda.tasks import app

    deadline = time.monotonic() + timeout_s
    names: set[str] = set()
    while len(names) < wanted and (left := deadline - time.monotonic()) > 0:
        try:
            replies = app.control.ping(timeout=min(left, 0.7), limit=wanted)
        except Exception as error:
            raise BrokerUnavailable(
                f"the broker does not answer: {str(error) or type(error).__name__}"
            ) from None
        names |= {name for reply in replies or [] for name in reply}
    return sorted(names)


def served_queues(*, timeout_s: float) -> dict[str, set[str]]:
    """Ask all workers through the broker which queues they serve; return those by worker.

    Waits a second for the slower ones, up to `timeout_s` for the first. Raises BrokerUnavailable.
    """
    from remuda.tasks import app

    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        try:
            replies = app.control.inspect(timeout=min(left, 1.0)).active_queues()
        except Exception as error:
            raise BrokerUnavailable(
                f"the broker does not answer: {str(error) or type(error).__name__}"
            ) from None
        if replies:
            return {worker: {queue["name"] for queue in found} for worker, found in replies.items()}
    return {}


def queue_sizes(settings: Settings, queues: Iterable[str]) -> dict[str, int]:
    """Return how many messages wait in each queue; raises BrokerUnavailable."""
    from remuda.tasks import app

    sizes = {}
    try:
        with app.connection_for_read() as connection:
            for queue in queues:
                channel = connection.channel()  # a queue that is missing closes its channel
                try:
                    sizes[queue] = int(channel.queue_declare(queue, passive=True).message_count)
                except connection.channel_errors:
                    sizes[queue] = 0
                channel.close()
    except Exception as error:
        raise BrokerUnavailable(
            f"the broker at {broker_url(settings)} does not answer: {str(error) or type(error).__name__}"
        ) from None
    return sizes


def this_host() -> str:
    """Return this machine's name as Celery's worker names hold it."""
    return socket.gethostname()
