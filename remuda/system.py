"""Bring the one-machine default up and down, and find the database; for the client and the CLI."""

from __future__ import annotations

import logging
import re
from importlib import resources

from sqlalchemy import Engine, text

from remuda import embedded
from remuda.config import Settings
from remuda.errors import DatabaseUnavailable, Refused
from remuda.models.database import make_engine, transact

log = logging.getLogger(__name__)


def database_url(settings: Settings) -> str:
    """Return the database's URL, configured or embedded; starts nothing. It may hold a password.

    Raises DatabaseUnavailable when the embedded server has never been started.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    url = embedded.server_url(settings)
    if url is None:
        raise DatabaseUnavailable(
            "there is no database yet", hint="`remuda up` starts it, or set REMUDA_DATABASE_URL"
        )
    return url


def bring_up(settings: Settings, *, processes: bool = True) -> str:
    """Make everything ready that is not, and return the database's URL.

    Embedded: the server runs, its schema is this release's and, if `processes`, so do a worker and
    a beat. Configured: an empty database gets the schema; one of another release is refused.
    Any number of processes may call at once. Raises EmbeddedError, DatabaseUnavailable, Refused.
    """
    url = embedded.ensure_server(settings) if settings.embedded else database_url(settings)
    engine = make_engine(url, pool_size=1)
    try:
        _migrate(engine, own=settings.embedded)
    finally:
        engine.dispose()
    if settings.embedded and processes:
        embedded.start_processes(settings)
    return url


def keep_up(settings: Settings) -> str:
    """Start again what has died since `bring_up`; costs a few file reads when nothing has."""
    if not settings.embedded:
        return database_url(settings)
    url = embedded.ensure_server(settings)
    if not all(process.running for process in embedded.process_status(settings)):
        embedded.start_processes(settings)
    return url


def take_down(settings: Settings, *, timeout_s: float = 30.0) -> list[str]:
    """Stop the embedded worker, beat and server; return the names of those that had to be killed.

    VMs and the jobs on them run on; the next `bring_up` finds them again.
    """
    killed = embedded.stop_processes(settings, timeout_s=timeout_s)
    if settings.embedded:
        embedded.stop_server(settings, timeout_s=timeout_s)
    return killed


def newest_revision() -> str:
    """Return the schema's revision of this release, without loading Alembic (slow)."""
    folder = resources.files("remuda.models.migrations.versions")
    texts = [
        f.read_text("utf-8") for f in folder.iterdir() if re.fullmatch(r"r\d+_\w+\.py", f.name)
    ]
    of, before = (
        {match[1] for text in texts if (match := re.search(rf'^{name} = "(\d+)"', text, re.M))}
        for name in ("revision", "down_revision")
    )
    # They are numbered when they are begun, and in the line when they are done.
    [newest] = of - before
    return newest


def present_revision(engine: Engine) -> str | None:
    """Return the database's revision, None when it is empty; without loading Alembic."""
    there = "SELECT to_regclass('alembic_version') IS NOT NULL"
    return transact(
        engine,
        lambda c: (
            c.scalar(text("SELECT version_num FROM alembic_version"))
            if c.scalar(text(there))
            else None
        ),
    )


def _migrate(engine: Engine, *, own: bool) -> None:
    present, wanted = present_revision(engine), newest_revision()
    if present == wanted:
        return
    if present is not None and not own:
        raise Refused(
            f"the database's schema is at revision {present}, this release needs {wanted}",
            hint="stop the workers of the other release and run `remuda db upgrade`",
        )
    from remuda.models import migrate

    migrate.upgrade(engine)
    log.info("migrated the database from revision %s to %s", present or "none", wanted)
