"""`remuda job logs` and `results`: what jobs wrote."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import note, write_whole
from remuda.cli.records import find_jobs
from remuda.cli.types import JOB_IDS
from remuda.errors import AlreadyExists, JobFailed, OutputNotAvailable


@click.command("logs", cls=Command, short_help="Print a job's stdout or stderr, live with -f.")
@click.argument("job_id", type=click.IntRange(1), metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Print it as it comes, until the job ends.")
@click.option("--fresh", is_flag=True, help="Only what nobody has read by --fresh yet.")
@click.option("--stderr", is_flag=True, help="Its stderr instead of its stdout.")
@click.option(
    "--attempt", type=click.IntRange(1), metavar="N", help="Of its N-th try, not of the last."
)
def logs(job_id: int, follow: bool, fresh: bool, stderr: bool, attempt: int | None) -> None:
    """Print what a job wrote to stdout (or with --stderr, to stderr), byte for byte.

    Of a job that runs, what it has written so far. Ctrl-C ends -f; the job goes on. With --fresh
    each byte is printed once, whoever asks for it, also while the job runs.
    """
    if follow and attempt is not None:
        raise click.UsageError("--attempt is of the past: it cannot be followed")
    if fresh and (follow or attempt is not None):
        raise click.UsageError("--fresh goes with neither --follow nor --attempt")
    stream = "stderr" if stderr else "stdout"
    out = sys.stdout.buffer
    with connect.open_client() as client:
        job = client.job(job_id)
        if follow:
            for name, data in client.follow(job):
                if name == stream:
                    write_whole(out, data)
        elif fresh:
            write_whole(out, job.fresh_stderr() if stderr else job.fresh_stdout())
        elif attempt is not None:
            for data in job.attempt_output(attempt, stream):
                write_whole(out, data)
        elif job.done:
            write_whole(out, job.stderr if stderr else job.stdout)
        else:
            try:
                write_whole(out, job.peek(stream))
            except OutputNotAvailable as error:
                error.hint = f"`remuda job logs -f {job_id}` waits for it"
                raise


@click.command("results", cls=Command, short_help="Copy jobs' results into a folder.")
@click.argument("ids", nargs=-1, type=JOB_IDS, metavar="[ID]...")
@click.option("--array", type=click.IntRange(1), metavar="A", help="Of all jobs of this array.")
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The folder; made if it is missing.  [default: the --output-dir of each]",
)
@click.option("--by-id", is_flag=True, help="Each job's files in a folder DIR/ID of their own.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def results(
    ids: tuple[tuple[int, ...], ...],
    array: int | None,
    to: Path | None,
    by_id: bool,
    overwrite: bool,
) -> None:
    """Copy the output files of ended jobs into a folder and print their paths.

    With --to nothing is overwritten unless --overwrite is given, and failed jobs give what they
    left. Without it the files go to the --output-dir of the submit; where that was not given
    either, nothing is copied and the paths are those in the storage.
    """
    wanted = list(itertools.chain.from_iterable(ids))
    if bool(wanted) == (array is not None):
        raise click.UsageError("say which jobs: ids, or --array")
    if to is None and (by_id or overwrite):
        raise click.UsageError("--by-id and --overwrite go with --to")
    with connect.open_client() as client:
        jobs = find_jobs(client, ids=wanted, array=array)
        early = next((job for job in jobs if not job.done), None)
        if early is not None:
            raise OutputNotAvailable(f"job {early.id} is {early.state}", hint="`remuda job wait`")
        for job in jobs:
            try:
                urls: dict[str, str] = {}
                if to is None:
                    result = job.result()
                    files, urls = result.outputs, result.urls
                else:
                    files = job.results(to / str(job.id) if by_id else to, overwrite=overwrite)
            except AlreadyExists as error:
                error.hint = "--overwrite replaces it"
                raise
            except JobFailed as error:
                error.hint = "--to DIR copies what it left"
                raise
            for place in (*files.values(), *urls.values()):
                click.echo(place)
            if not files and not urls:
                note(f"job {job.id} left no files")
