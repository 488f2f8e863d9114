"""`remuda worker` and `beat`: become the Celery process, with sane options before yours."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from remuda.cli.base import Command
from remuda.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from remuda.config import Settings

PASS_ON: dict[str, Any] = {"ignore_unknown_options": True, "allow_interspersed_args": True}


def become(*arguments: str) -> None:
    """Replace this process by `celery -A remuda.tasks ARGUMENTS`."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "celery", "-A", "remuda.tasks", *arguments])


@click.command(
    "worker",
    cls=Command,
    context_settings=PASS_ON,
    short_help="Be a Celery worker of Remuda.",
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve /metrics there, to whoever asks: what `remuda metrics --only-processes` does. For "
    "workers whose state directory no `remuda metrics` sees, such as those in containers.",
)
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED, metavar="[CELERY OPTIONS]...")
def worker(metrics: str | None, celery_options: tuple[str, ...]) -> None:
    """Run `celery -A remuda.tasks worker` in the foreground, in this process.

    Options of `celery worker` are passed on and win over the ones set here. Start as many workers
    as you like, on any machine that reaches the database, the broker and the VMs:

    \b
        remuda worker                        # all queues
        remuda worker -Q jobs -c 16          # or one kind of work each
        remuda worker -Q control,vms
        remuda worker --metrics 0.0.0.0:9808

    TERM ends it after its present tasks (a second or so); jobs on VMs go on, and the next worker
    attaches to them again.
    """
    from remuda.config import load_settings

    settings = load_settings()
    if metrics is not None:
        from remuda.tasks import serving

        serving.check(metrics, option="--metrics")
    _check_schema(settings)
    become(
        "worker",
        f"--loglevel={settings.log_level}",
        "--pool=threads",
        f"--concurrency={settings.worker_concurrency}",
        f"--hostname=worker{os.getpid()}@%h",
        "--without-mingle",
        "--without-gossip",
        *([] if metrics is None else [f"--metrics={metrics}"]),
        *celery_options,
    )


def _check_schema(settings: Settings) -> None:
    """Bring the embedded database up; raise Refused if another is of another release.

    One that is away, or empty so far, is waited for by the worker itself.
    """
    from remuda import system
    from remuda.cli import health

    if settings.embedded:
        system.bring_up(settings, processes=False)
        return
    try:
        with health.database(settings) as engine:
            if system.present_revision(engine) is not None:
                health.check_schema(engine)
    except DatabaseUnavailable as error:
        click.echo(f"remuda: {error.message}; the worker waits for it", err=True)


@click.command(
    "beat", cls=Command, context_settings=PASS_ON, short_help="Be the Celery beat of Remuda."
)
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED, metavar="[CELERY OPTIONS]...")
def beat(celery_options: tuple[str, ...]) -> None:
    """Run `celery -A remuda.tasks beat` in the foreground, in this process.

    It sends the periodic sweeps. One is enough; a second one does no harm.
    """
    from remuda.config import load_settings

    become("beat", f"--loglevel={load_settings().log_level}", "--pidfile=", *celery_options)
