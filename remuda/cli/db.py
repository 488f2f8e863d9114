"""`remuda db`: the schema of the database."""

from __future__ import annotations

from pathlib import Path

import click

from remuda.cli.base import Command
from remuda.cli.output import count, format_size, note

_FOLDER = click.Path(file_okay=False, path_type=Path)


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


@click.command("backup", cls=Command, short_help="Write a backup into a folder.")
@click.argument("folder", type=_FOLDER)
def backup(folder: Path) -> None:
    """Write a backup of the database, and of the storage if that is a folder, into FOLDER.

    The system goes on meanwhile. A further backup into the same folder replaces the database's
    and adds the files that are new.
    """
    from remuda import backup as backups
    from remuda.config import load_settings

    made = backups.make(load_settings(), folder, progress=note)
    files = "" if made.files is None else f", {count(made.files, 'file')} of the storage"
    click.echo(f"backed up to {folder}: {format_size(made.dump_bytes)} of database{files}")
    if made.files is None:
        note(f"the files at {made.storage_url} are not in it: that store keeps its own backups")


@click.command("restore", cls=Command, short_help="Bring a backup back.")
@click.argument("folder", type=_FOLDER)
@click.option("--replace", is_flag=True, help="Also over pools and jobs: they are gone then.")
@click.option(
    "--gap",
    type=click.IntRange(1, 10**12),
    default=1_000_000,
    show_default=True,
    metavar="N",
    help="More ids than were handed out since the backup.",
)
def restore(folder: Path, replace: bool, gap: int) -> None:
    """Bring the backup in FOLDER back, bring its schema to this release's, and fence it.

    Stop every worker and beat first. VMs of the backup's time are then terminated, those made since
    are found and terminated, and jobs that had not ended at that time run again: see `db fence`.
    """
    from remuda import backup as backups
    from remuda.config import load_settings
    from remuda.system import bring_up

    settings = load_settings()
    if settings.embedded:
        bring_up(settings, processes=False)
    done = backups.restore(settings, folder, replace=replace, gap=gap, progress=note)
    click.echo(f"restored the backup of {done.manifest.made_at}, {count(done.files, 'file')}")
    if done.moved:
        click.echo(f"the storage is elsewhere now: {count(done.moved, 'row')} changed")
    _tell_fenced(done.fenced.vms, done.fenced.attempts, done.fenced.gap)


@click.command("fence", cls=Command, short_help="Make a database safe that was set back in time.")
@click.option(
    "--gap",
    type=click.IntRange(1, 10**12),
    default=1_000_000,
    show_default=True,
    metavar="N",
    help="More ids than were handed out since that time.",
)
def fence(gap: int) -> None:
    """Make a database safe that was set back to an earlier time by other means than `db restore`.

    Machines know attempts by ids that it would hand out once more: they go on N further. Every VM is
    stopped; what ran on it is LOST, and runs again. Do it once, before the first worker starts.
    """
    from remuda.config import load_settings
    from remuda.models import fencing, migrate
    from remuda.models.database import make_engine, transact
    from remuda.system import database_url

    engine = make_engine(database_url(load_settings()), pool_size=1)
    try:
        migrate.check(engine)
        done = transact(engine, lambda c: fencing.fence(c, gap=gap))
    finally:
        engine.dispose()
    _tell_fenced(done.vms, done.attempts, done.gap)


def _tell_fenced(vms: int, attempts: int, gap: int) -> None:
    click.echo(
        f"{count(vms, 'VM')} will be terminated, {count(attempts, 'attempt')} on them given up; "
        f"ids go on {gap} further"
    )
    click.echo("now start the workers and beat")
