"""Wait for jobs: all of them, or one after the other as they end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from remuda.errors import UnknownJob, WaitTimeout
from remuda.models import requests
from remuda.models.outputs import which_exist

if TYPE_CHECKING:
    from remuda.client.context import Context
    from remuda.client.jobs import Job
    from remuda.client.waiting import Record, Ticket

_LOOK_S = 2.0  # how often a session's transaction is looked at, while it is open


def as_completed(
    context: Context, jobs: Iterable[Job], *, timeout_s: float | None = None
) -> Iterator[Job]:
    """Yield the jobs in the order of their ends, each once for every time it is given.

    Raises WaitTimeout when not all have ended `timeout_s` seconds from this call. The final rows
    are read many at a time, and what the jobs tell from then on needs no further query.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    given: dict[int, list[Job]] = {}
    for job in jobs:
        given.setdefault(job.id, []).append(job)
    return _ends(context, given, deadline)


def wait(context: Context, jobs: Sequence[Job], *, timeout_s: float | None = None) -> list[Job]:
    """Wait until all jobs have ended, well or not, and return them; raises WaitTimeout."""
    for _ in as_completed(context, jobs, timeout_s=timeout_s):
        pass
    return list(jobs)


def _ends(context: Context, given: dict[int, list[Job]], deadline: float | None) -> Iterator[Job]:
    rows = [next((j.settled for j in same if j.settled), None) for same in given.values()]
    known = [row for row in rows if row is not None]
    for row in sorted(known, key=lambda row: (row["ended_at"], row["id"])):
        for job in given.pop(row["id"]):
            job.settle(row)
            yield job
    if not given:
        return
    _check(context, [job for same in given.values() for job in same])
    ticket = context.waiting.watch(given)
    try:
        while given:
            for row in _take(context, ticket, given, deadline):
                for job in given.pop(row["id"], ()):
                    job.settle(row)
                    yield job
    finally:
        ticket.close()


def _take(
    context: Context, ticket: Ticket, given: dict[int, list[Job]], deadline: float | None
) -> list[Record]:
    """Wait for the next ends, looking after transactions that may be rolled back."""
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            found = ticket.take(0)
            if not found:
                raise WaitTimeout(f"{len(given)} jobs have not ended in time")
            return found
        open_ones = [job for same in given.values() for job in same if job.transaction]
        found = ticket.take(min(left or _LOOK_S, _LOOK_S) if open_ones else left)
        if found:
            return found
        _check(context, open_ones)


def _check(context: Context, jobs: Sequence[Job]) -> None:
    """Raise UnknownJob if a job's transaction was rolled back; it would be waited for for ever."""
    for transaction in {job.transaction for job in jobs if job.transaction}:
        state = context.read(lambda c, t=transaction: requests.transaction_state(c, t))  # type: ignore[misc]
        if state == "in progress":
            continue
        ids = [job.id for job in jobs if job.transaction == transaction]
        missing = set(ids) - context.read(lambda c, ids=ids: which_exist(c, ids))  # type: ignore[misc]
        if missing:
            raise UnknownJob(
                f"job {min(missing)} was never submitted: its transaction was rolled back"
            )
        for job in jobs:
            if job.transaction == transaction:
                job.committed()
