"""`remuda job wait`."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import count, note, printable
from remuda.cli.records import find_jobs
from remuda.cli.types import DURATION_OR_ZERO, JOB_IDS, LIVE_JOB_STATES
from remuda.errors import WaitTimeout

if TYPE_CHECKING:
    from remuda.client import Client, Job

TIMED_OUT = 124  # as of timeout(1)
_SHOWN_FAILURES = 10


@click.command("wait", cls=Command, short_help="Wait until jobs have ended.")
@click.argument("ids", nargs=-1, type=JOB_IDS, metavar="[ID]...")
@click.option("--pool", metavar="POOL", help="All jobs of this pool.")
@click.option("--array", type=click.IntRange(1), metavar="A", help="All jobs of this array.")
@click.option("--timeout", type=DURATION_OR_ZERO, help="Give up after this time: 600, 10m, 2h.")
@click.pass_context
def wait(
    ctx: click.Context,
    ids: tuple[tuple[int, ...], ...],
    pool: str | None,
    array: int | None,
    timeout: float | None,
) -> None:
    """Wait until jobs have ended: those of the ids, of a pool, of an array.

    Exits with 0 only if all of them succeeded (those that had ended before too), with 1 if any
    failed (up to 10 of them are named on stderr), with 124 when the time is over.
    """
    wanted = list(itertools.chain.from_iterable(ids))
    if bool(wanted) == (pool is not None or array is not None):
        raise click.UsageError("say which jobs: ids, or --pool, --array or both of these")
    with connect.open_client() as client:
        ctx.exit(wait_and_tell(client, wanted, pool=pool, array=array, timeout_s=timeout))


def wait_and_tell(
    client: Client,
    wanted: list[int],
    *,
    pool: str | None = None,
    array: int | None = None,
    timeout_s: float | None = None,
) -> int:
    """Wait with a progress line, say how the jobs ended; return the command's exit code."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    tally = _Tally()
    try:
        with _display(tally):
            if wanted:
                _follow(client, find_jobs(client, ids=wanted), tally, deadline)
            else:
                _follow_all(client, pool, array, tally, deadline)
    except WaitTimeout:
        left = tally.total - tally.done
        note(f"remuda: the time is over: {left} of {count(tally.total, 'job')} not ended")
        return TIMED_OUT
    if tally.failed:
        jobs = find_jobs(client, ids=wanted, pool=pool, array=array, states=["TERMINATED"])
        _name_failures([job for job in jobs if job.reason != "OK"])
    else:
        note(f"{count(tally.total, 'job')} succeeded" if tally.total else "there are no jobs")
    return 1 if tally.failed else 0


class _Tally:
    """How many of the jobs have ended, and how."""

    def __init__(self) -> None:
        self.total = 0
        self.reasons: Counter[str] = Counter()

    @property
    def done(self) -> int:
        return sum(self.reasons.values())

    @property
    def failed(self) -> int:
        return self.done - self.reasons["OK"]

    def changed(self) -> None:
        """Be told of a change; the display replaces it."""


def _follow(client: Client, jobs: list[Job], tally: _Tally, deadline: float | None) -> None:
    tally.total += len(jobs)
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    for job in client.as_completed(jobs, timeout_s=left):
        tally.reasons[str(job.reason)] += 1
        tally.changed()


def _follow_all(
    client: Client, pool: str | None, array: int | None, tally: _Tally, deadline: float | None
) -> None:
    """Follow all jobs there are, and those that are submitted meanwhile."""
    while live := find_jobs(client, pool=pool, array=array, states=LIVE_JOB_STATES):
        tally.reasons = Counter(client.reasons(pool, array=array))
        tally.total = tally.done
        # Some may have ended between the two queries and so be counted twice: start over with
        # what is known at the end.
        _follow(client, live, tally, deadline)
    tally.reasons = Counter(client.reasons(pool, array=array))
    tally.total = tally.done
    tally.changed()


@contextmanager
def _display(tally: _Tally) -> Iterator[None]:
    """Show a progress line on stderr while a person looks on."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.fields[done]}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("[red]{task.fields[failures]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = progress.add_task("", total=None, done="", rate="", failures="")
    began = time.monotonic()
    first: int | None = None

    def changed() -> None:
        nonlocal first
        first = tally.done - 1 if first is None else first
        rate = (tally.done - first) / max(time.monotonic() - began, 0.001)
        failures = f"{tally.failed} failed" if tally.failed else ""
        progress.update(
            task,
            completed=tally.done,
            total=tally.total,
            done=f"{tally.done}/{tally.total} jobs",
            rate=f"{rate:.1f}/s",
            failures=failures,
        )

    tally.changed = changed  # type: ignore[method-assign]
    with progress:
        yield


def _name_failures(failed: list[Job]) -> None:
    note(f"remuda: {count(len(failed), 'job')} failed")
    for job in failed[:_SHOWN_FAILURES]:
        name = f" {job.name!r}" if job.name else ""
        how = {"NONZERO": f"exit code {job.exit_code}", "SIGNALLED": f"signal {job.signal}"}
        told = how.get(str(job.reason), str(job.reason))
        note(printable(f"  job {job.id}{name}: {told}{f', {job.message}' if job.message else ''}"))
    if len(failed) > _SHOWN_FAILURES:
        note(f"  and {len(failed) - _SHOWN_FAILURES} more")
