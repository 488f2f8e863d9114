"""`remuda up` and `remuda down`: this machine's part of the system."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import connect, health
from remuda.cli.base import Command
from remuda.cli.output import count, format_duration, note
from remuda.cli.types import DURATION, LIVE_JOB_STATES
from remuda.errors import EmbeddedError, Refused, RemudaError, WaitTimeout

if TYPE_CHECKING:
    from remuda.config import Settings

_READY_S = 60.0  # of a worker that lives: a busy machine takes its time to start one
_LOOK_S = 2.0
_CLOSING_S = 5.0
_CANCELLED_S = 15.0
_OTHERS_S = 1.0
_MANY = 10_000


@click.command("up", cls=Command, short_help="Start what is needed here; harmless when it runs.")
@click.option("--no-processes", is_flag=True, help="Only the database: no worker, no beat.")
def up(no_processes: bool) -> None:
    """Start the embedded database (if none is configured), a worker and a beat on this machine.

    What runs already stays as it is. Returns when the worker answers.
    """
    from remuda import embedded, system
    from remuda.config import load_settings

    settings = load_settings()
    began = time.monotonic()
    before = {process.name for process in health.processes(settings) if process.running}
    url = system.bring_up(settings, processes=not no_processes)
    if not no_processes:
        if not settings.embedded:
            embedded.start_processes(settings)
        _wait_for_worker(settings)
    _tell_up(settings, url, before, time.monotonic() - began)


def _wait_for_worker(settings: Settings) -> None:
    """Return when a worker answers; raises EmbeddedError when the one here ends, or takes too long."""
    deadline = time.monotonic() + _READY_S
    while not health.ping_workers(timeout_s=_LOOK_S):
        lives = any(p.name == "worker" and p.running for p in health.processes(settings))
        if lives and time.monotonic() < deadline:
            continue
        why = f"does not answer {_READY_S:g} s after its start" if lives else "ended"
        raise EmbeddedError(
            f"the worker {why}",
            hint=f"see {settings.state_dir / 'log' / 'worker.log'}, and `remuda doctor`",
        )


def _tell_up(settings: Settings, url: str, before: set[str], seconds: float) -> None:
    running = [process for process in health.processes(settings) if process.running]
    for process in running:
        state = "was running" if process.name in before else "started"
        click.echo(f"{process.name:<9} {state}, process {process.pid}")
    click.echo(f"database  {health.safe_url(url)}")
    click.echo(f"broker    {health.broker_url(settings)}")
    click.echo(f"data      {settings.data_dir}")
    click.echo(f"logs      {settings.state_dir / 'log'}")
    if {process.name for process in running} - before:
        click.echo(f"ready in {format_duration(seconds)}")


@click.command("down", cls=Command, short_help="Stop what `up` started.")
@click.option("--now", is_flag=True, help="Cancel all jobs and end all VMs first.")
@click.option(
    "--timeout",
    type=DURATION,
    default="30s",
    show_default=True,
    help="How long the processes may take to end before they are killed.",
)
def down(now: bool, timeout: float) -> None:
    """Stop this machine's beat, worker and embedded database; no job is lost.

    VMs without work are ended. VMs with running jobs go on by themselves; the next `remuda up`
    attaches to them again, and starts the jobs that wait. With --now nothing is left behind. Where
    workers of other machines share the system, VMs and jobs are left to them.
    """
    from remuda import embedded, system
    from remuda.config import load_settings

    settings = load_settings()
    running = [process.name for process in health.processes(settings) if process.running]
    never_up = settings.embedded and embedded.server_url(settings) is None
    if not running and (never_up or not now):
        click.echo("nothing was running")
        return
    if now:
        if _others_at_work(settings):
            raise Refused(
                "workers of other machines share this system; --now would cancel their jobs too",
                hint="`remuda down` stops this machine's part, `remuda job cancel` single jobs",
            )
        system.bring_up(settings)
        embedded.start_processes(settings)
        _cancel_all()
    elif "worker" in running:
        _wait_for_closing_pools()
    killed = embedded.stop_processes(settings, timeout_s=timeout)
    left: dict[str, int] = {}
    try:
        if not _others_at_work(settings):
            left = _end_vms(settings, busy_too=now)
    except RemudaError as error:
        note(f"remuda: VMs stay as they are: {error.message}")
    system.take_down(settings, timeout_s=timeout)
    for name in killed:
        note(f"remuda: the {name} did not end in {format_duration(timeout)} and was killed")
    _tell_down(running, left)


def _others_at_work(settings: Settings) -> bool:
    """Tell whether workers besides this machine's embedded one answer; never on embedded."""
    if settings.embedded:
        return False
    names = health.ping_workers(timeout_s=_OTHERS_S, wanted=_MANY)
    return any(name != f"embedded@{health.this_host()}" for name in names)


def _tell_down(stopped: list[str], left: dict[str, int]) -> None:
    if stopped:
        click.echo(f"stopped {', '.join(stopped)}")
    if left.get("ended"):
        click.echo(f"ended {count(left['ended'], 'VM')}")
    if left.get("vms"):
        verb = "goes" if left["vms"] == 1 else "go"
        click.echo(
            f"{count(left['vms'], 'VM')} {verb} on with {count(left['jobs'], 'job')};"
            " `remuda up` re-attaches, `remuda down --now` ends them"
        )
    if left.get("waiting"):
        click.echo(f"{count(left['waiting'], 'job')} waiting for the next `remuda up`")


def _cancel_all() -> None:
    """Cancel every job and wait a while for their ends."""
    with connect.open_client() as client:
        jobs = client.jobs(state=LIVE_JOB_STATES, limit=None)
        client.cancel(jobs)
        try:
            client.wait(jobs, timeout_s=_CANCELLED_S)
        except WaitTimeout:
            note("remuda: some jobs do not end; they are lost with their VMs")


def _wait_for_closing_pools() -> None:
    """Let pools that close and have nothing left to do come to their end while the worker lives."""
    deadline = time.monotonic() + _CLOSING_S
    try:
        with connect.open_client(start=False) as client:
            for pool in client.pools():
                counts = client.counts(pool)
                live = sum(counts.values()) - counts.get("TERMINATED", 0)
                if pool.state == "CLOSING" and not live:
                    pool.wait_closed(timeout_s=max(0.1, deadline - time.monotonic()))
    except WaitTimeout:
        return
    except RemudaError as error:
        note(f"remuda: {error.message}")


def _end_vms(settings: Settings, *, busy_too: bool) -> dict[str, int]:
    """End the VMs that hold no attempt and no lease, in this process: no worker is left to do it.

    With `busy_too` all of them; what still ran there is lost.
    Returns how many ended, how many VMs go on with how many jobs, and how many jobs wait.
    """
    from sqlalchemy import Connection

    from remuda.models.database import rows
    from remuda.models.states import VmState
    from remuda.models.vm_life import close_idle, move_vm
    from remuda.tasks import machines
    from remuda.tasks.runtime import Runtime

    def idle(connection: Connection) -> list[int]:
        live = rows(connection, "SELECT id FROM vms WHERE state NOT IN ('HALTED', 'STOPPING')")
        closed = close_idle(connection, [row["id"] for row in live])
        for row in live if busy_too else ():
            if row["id"] not in closed:
                move_vm(connection, row["id"], VmState.STOPPING)
        stopping = rows(connection, "SELECT id FROM vms WHERE state = 'STOPPING' ORDER BY id")
        return [row["id"] for row in stopping]

    def remaining(connection: Connection) -> dict[str, Any]:
        found = rows(
            connection,
            """SELECT (SELECT count(*) FROM vms WHERE state <> 'HALTED') AS vms,
                 (SELECT count(*) FROM attempts WHERE state IN ('PLACED', 'STARTED', 'EXITED'))
                   AS jobs,
                 (SELECT count(*) FROM jobs WHERE state = 'NEW') AS waiting""",
        )
        return dict(found[0])

    runtime = Runtime(settings)
    try:
        ended = 0
        for vm_id in runtime.transact(idle):
            try:
                ended += machines.terminate_vm(runtime, vm_id)
            except RemudaError as error:
                note(f"remuda: VM {vm_id} could not be ended: {error.message}")
        return {"ended": ended, **runtime.transact(remaining)}
    finally:
        runtime.close()
