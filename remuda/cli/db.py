"""`remuda db`: the schema of the database."""

from __future__ import annotations

import click

from remuda.cli.base import Command


@click.command("upgrade", cls=Command, short_help="Bring the schema to this release's revision.")
def upgrade() -> None:
    """Bring the database's schema to this release's revision; harmless when it is there.

    Several at once do no harm. Run it once, before the first worker of a new release starts;
    the embedded default does it by itself.
    """
    from remuda.config import load_settings
    from remuda.models import migrate
    from remuda.models.database import make_engine
    from remuda.system import database_url

    engine = make_engine(database_url(load_settings()), pool_size=1)
    try:
        before = migrate.current(engine)
        migrate.upgrade(engine)
    finally:
        engine.dispose()
    head = migrate.head()
    click.echo(
        f"the schema is at {head}" + ("" if before == head else f" (was: {before or 'empty'})")
    )


@click.command("check", cls=Command, short_help="Fail unless the schema is this release's.")
def check() -> None:
    """Exit with 1, saying what to do, unless the schema is at this release's revision."""
    from remuda.config import load_settings
    from remuda.models import migrate
    from remuda.models.database import make_engine
    from remuda.system import database_url

    engine = make_engine(database_url(load_settings()), pool_size=1)
    try:
        migrate.check(engine)
    finally:
        engine.dispose()
    click.echo(f"the schema is at {migrate.head()}, as it should be")
