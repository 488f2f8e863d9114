"""`remuda worker` and `beat`: become the Celery process, with sane options before yours."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from remuda.cli.base import Command

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
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED, metavar="[CELERY OPTIONS]...")
def worker(celery_options: tuple[str, ...]) -> None:
    """Run `celery -A remuda.tasks worker` in the foreground, in this process.

    Options of `celery worker` are passed on and win over the ones set here. Start as many workers
    as you like, on any machine that reaches the database, the broker and the VMs:

    \b
        remuda worker                        # all queues
        remuda worker -Q jobs -c 16          # or one kind of work each
        remuda worker -Q control,vms

    TERM ends it after its present tasks (a second or so); jobs on VMs go on, and the next worker
    attaches to them again.
    """
    from remuda.config import load_settings

    settings = load_settings()
    if settings.embedded:
        from remuda import system

        system.bring_up(settings, processes=False)
    become(
        "worker",
        f"--loglevel={settings.log_level}",
        "--pool=threads",
        f"--concurrency={settings.worker_concurrency}",
        f"--hostname=worker{os.getpid()}@%h",
        "--without-mingle",
        "--without-gossip",
        *celery_options,
    )


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
