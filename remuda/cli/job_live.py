"""`remuda job peek`, `files`, `signal`, `suspend`, `resume`, `extend` and `shell`: running jobs."""

from __future__ import annotations

import itertools
import os
import sys

import click
from click.exceptions import Exit

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import (
    Column,
    count,
    format_duration,
    format_size,
    note,
    print_rows,
    write_whole,
)
from remuda.cli.records import find_jobs
from remuda.cli.types import DURATION, JOB_IDS, LIVE_JOB_STATES, SIZE, json_option
from remuda.errors import OutputNotAvailable, Refused, RemudaError

_FILE_COLUMNS = [
    Column("MODE", lambda row: "" if row["mode"] is None else f"{row['mode']:04o}"),
    Column("SIZE", lambda row: format_size(row["size"]), right=True),
    Column("CHANGED", "modified_at"),
    Column("NAME", "name"),
]


@click.command("peek", cls=Command, short_help="Print a file of a job's sandbox, live with -f.")
@click.argument("job_id", type=click.IntRange(1), metavar="ID")
@click.argument("file", metavar="FILE")
@click.option(
    "--offset",
    type=int,
    default=0,
    metavar="N",
    help="From byte N on; a negative N counts from the end.  [default: 0]",
)
@click.option("--size", type=SIZE, metavar="SIZE", help="At most so much.")
@click.option("-f", "--follow", is_flag=True, help="Go on as it grows, until the job ends.")
def peek(job_id: int, file: str, offset: int, size: int | None, follow: bool) -> None:
    """Print a file of a job's sandbox, or its `stdout` or `stderr`, byte for byte.

    A file that is called stdout is `./stdout`. Once the job has ended, the files declared as
    outputs are there, and both streams. Ctrl-C ends -f; the job goes on.
    """
    if follow and size is not None:
        raise click.UsageError("--follow prints all there is: --size does not go with it")
    out = sys.stdout.buffer
    with connect.open_client() as client:
        job = client.job(job_id)
        if not follow:
            write_whole(out, job.peek(file, offset, size))
            return
        for data in job.follow_file(file, offset):
            write_whole(out, data)


@click.command("files", cls=Command, short_help="List the files in a job's sandbox.")
@click.argument("job_id", type=click.IntRange(1), metavar="ID")
@json_option
def files(job_id: int, as_json: bool) -> None:
    """List the files in a job's sandbox; of a job that has ended, those that were kept.

    The times are those of the VM's clock.
    """
    with connect.open_client() as client:
        found = client.job(job_id).files()
    records = [
        {"name": f.name, "size": f.size, "mode": f.mode, "modified_at": f.modified_at}
        for f in found
    ]
    print_rows(_FILE_COLUMNS, records, as_json=as_json)


@click.command("signal", cls=Command, short_help="Send a signal to a running job.")
@click.argument("job_id", type=click.IntRange(1), metavar="ID")
@click.argument("signal", metavar="SIGNAL")
def signal(job_id: int, signal: str) -> None:
    """Send a signal, by name (USR1) or number, to all processes of a job's command."""
    with connect.open_client() as client:
        client.job(job_id).send_signal(signal)


@click.command("suspend", cls=Command, short_help="Suspend jobs; `resume` lets them go on.")
@click.argument("ids", nargs=-1, type=JOB_IDS, metavar="[ID]...")
@click.option("--pool", metavar="POOL", help="All jobs of this pool that have not ended.")
@click.option("--array", type=click.IntRange(1), metavar="A", help="All jobs of this array.")
def suspend(ids: tuple[tuple[int, ...], ...], pool: str | None, array: int | None) -> None:
    """Stop running jobs where they are, and hold back waiting ones.

    A suspended job keeps its slots; the time does not count as walltime. Jobs that have ended stay
    as they are.
    """
    _toggle("suspended", ids, pool, array)


@click.command("resume", cls=Command, short_help="Let suspended jobs go on.")
@click.argument("ids", nargs=-1, type=JOB_IDS, metavar="[ID]...")
@click.option("--pool", metavar="POOL", help="All jobs of this pool that have not ended.")
@click.option("--array", type=click.IntRange(1), metavar="A", help="All jobs of this array.")
def resume(ids: tuple[tuple[int, ...], ...], pool: str | None, array: int | None) -> None:
    """Let suspended jobs go on, and jobs be placed that were held back."""
    _toggle("resumed", ids, pool, array)


@click.command("extend", cls=Command, short_help="Give a job a longer walltime.")
@click.argument("job_id", type=click.IntRange(1), metavar="ID")
@click.option("--walltime", type=DURATION, metavar="TIME", help="So long in all, from its start.")
@click.option("--by", type=DURATION, metavar="TIME", help="So much longer than it may run now.")
def extend(job_id: int, walltime: float | None, by: float | None) -> None:
    """Give a job a longer walltime, also while it runs; its time suspended does not count."""
    if (walltime is None) == (by is None):
        raise click.UsageError("say how long: --walltime, or --by")
    with connect.open_client() as client:
        job = client.job(job_id)
        if by is not None:
            present = job.info()["walltime_s"]
            if present is None:
                raise Refused(f"job {job_id} has no limit of walltime: there is none to extend")
            walltime = present + by
        if walltime is not None:
            job.extend_walltime(walltime)
            click.echo(f"job {job_id} may run for {format_duration(walltime)}")


@click.command(
    "shell",
    cls=Command,
    short_help="Open a shell in a job's sandbox, on its VM.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("job_id", type=click.IntRange(1), metavar="ID")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND]...")
def shell(job_id: int, command: tuple[str, ...]) -> None:
    """Open a shell in a job's sandbox with its environment, or run one command there.

    As long as the job runs, and afterwards while the sandbox is still there. It goes to the VM
    straight from here, as a worker does: the key of its hosts must be on this machine. Exits with
    the exit code of the shell or command.
    """
    from remuda.workers.shells import open_shell

    with connect.open_client() as client:
        job = client.job(job_id)
        place = job.place()
        if job.done:
            raise OutputNotAvailable(
                f"job {job_id} has ended, and its sandbox is gone",
                hint=f"`remuda job files {job_id}` lists what was kept",
            )
    if command[:1] == ("--",):
        command = command[1:]
    terminal = not command and os.isatty(0)
    raise Exit(open_shell(place.address, place.attempt_id, command, terminal=terminal))


def _toggle(
    done: str, ids: tuple[tuple[int, ...], ...], pool: str | None, array: int | None
) -> None:
    wanted = list(itertools.chain.from_iterable(ids))
    if bool(wanted) == (pool is not None or array is not None):
        raise click.UsageError("say which jobs: ids, or --pool, --array or both of these")
    with connect.open_client() as client:
        jobs = find_jobs(client, ids=wanted, pool=pool, array=array, states=LIVE_JOB_STATES)
        change = client.suspend if done == "suspended" else client.resume
        try:
            number = change(jobs)
        except RemudaError as error:
            error.hint = error.hint or "the other jobs were asked; `remuda job list` shows them"
            raise
    click.echo(f"{done} {count(number, 'job')}")
    if number < len(jobs):
        note(f"{count(len(jobs) - number, 'job')} had already ended")
