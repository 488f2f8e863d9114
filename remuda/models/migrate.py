"""Bring a database's schema to this release's, or tell how it differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from remuda.errors import Refused
from remuda.models.database import transact
from remuda.models.tables import Base

_LOCK = 0x52454D55  # "REMU": one migration at a time


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
    )
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """Return the revision this release needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise AssertionError("the package has no migrations")
    return revision


def revisions() -> list[str]:
    """Return all revisions, oldest first."""
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return [script.revision for script in scripts][::-1]


def current(engine: Engine) -> str | None:
    """Return the database's revision; None when it is empty."""
    return transact(engine, lambda c: MigrationContext.configure(c).get_current_revision())


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate to `revision` in one transaction; several at once do no harm.

    Raises DatabaseUnavailable, or Refused when the database is newer than this release.
    """

    def work(connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        present = MigrationContext.configure(connection).get_current_revision()
        if present is not None and present not in revisions():
            raise Refused(
                f"the database's schema is at revision {present}, unknown to this release",
                hint="upgrade Remuda, the database is newer",
            )
        command.upgrade(_config(connection), revision)

    transact(engine, work)


def check(engine: Engine) -> None:
    """Raise Refused unless the schema is exactly this release's revision."""
    present = current(engine)
    if present != head():
        raise Refused(
            f"the database's schema is at revision {present or 'none'}, this release needs {head()}",
            hint="run `remuda db upgrade`",
        )


def differences(engine: Engine) -> list[Any]:
    """Return what Alembic would still change to make the database equal to the models."""

    def work(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))

    return transact(engine, work)
