"""The client: one object from which everything a producer or operator needs can be reached."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from remuda.checks import shown, text_if, whole
from remuda.client import (
    cancelling,
    completion,
    live,
    submitting,
)
from remuda.client import parameters as parameter_rows
from remuda.client.arrays import Array, limit_of
from remuda.client.context import Context
from remuda.client.jobs import Job
from remuda.client.machines import Machines
from remuda.client.overview import Lookout
from remuda.client.pooling import Pooling
from remuda.client.pools import Pool, Pools, pool_rows
from remuda.client.profiles import Profiles
from remuda.client.secrets import Secrets
from remuda.config import Settings, load_settings
from remuda.constraints import tags_of
from remuda.errors import BadInput, Refused, UnknownArray
from remuda.models import arrays as array_models
from remuda.models import query, requests
from remuda.models.states import PoolState
from remuda.spec import JobSpec

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session


class Client(Pooling, Profiles, Secrets, Machines):
    """Remuda from Python; thread-safe. As a context manager it closes its connections at the end.

    Without settings those of the environment hold; if no database is configured, the embedded
    default is started on demand (unless `start` is false) and left running for the next.
    """

    def __init__(
        self, settings: Settings | None = None, *, owner: str | None = None, start: bool = True
    ) -> None:
        """`owner`: whose jobs these are; None: as the settings say, else the login name.

        Raises ConfigError, EmbeddedError, DatabaseUnavailable.
        """
        self.settings = settings or load_settings()
        self._context = Context(self.settings, owner=owner, start=start)

    def submit(
        self,
        spec: JobSpec,
        *,
        pool: Pools | None = None,
        session: Session | Connection | None = None,
        allow_pending: bool = False,
    ) -> Job:
        """Submit a job (None: to the pool `default`, made when it is missing) and return it.

        Of several pools it goes to the first, in their order, that has room for it.
        With `session` it goes into that open transaction: rolled back or visible with it. Raises
        NoResources when it could never run in any (unless `allow_pending`), Refused when the pool
        has ended, DataStagingError when an input is missing, DatabaseUnavailable.
        """
        return self._submitter(pool, session, allow_pending).one(spec)

    def submit_many(
        self,
        specs: Iterable[JobSpec],
        *,
        pool: Pools | None = None,
        name: str = "",
        session: Session | Connection | None = None,
        allow_pending: bool = False,
    ) -> list[Job]:
        """Submit jobs as one array, all or none; the specs may come from a long generator."""
        return self._submitter(pool, session, allow_pending).many(specs, name=name)

    def submit_array(
        self,
        spec: JobSpec,
        count_or_indices: int | Iterable[int | str] | None = None,
        *,
        rows: Iterable[Mapping[str, Any]] | str | os.PathLike[str] | None = None,
        parameters: Mapping[str, Iterable[Any]] | None = None,
        csv: str | os.PathLike[str] | None = None,
        pool: Pools | None = None,
        name: str = "",
        max_running: int | None = None,
        session: Session | Connection | None = None,
        allow_pending: bool = False,
    ) -> list[Job]:
        """Submit a job for each index (a count: from 0) or row of parameters, all or none.

        `rows`: mappings, or a .csv or .jsonl file of them; `parameters`: lists by name, every
        combination of which is a row. `{index}` and each `{name}` are filled in everywhere.
        `max_running`: how many of the jobs may be on machines at once.
        """
        found = parameter_rows.source(rows, parameters, csv)
        most = limit_of(max_running)
        submitter = self._submitter(pool, session, allow_pending, max_running=most)
        if found is not None and count_or_indices is None:
            return submitter.rows(spec, found, name=name)
        if found is not None or count_or_indices is None:
            raise BadInput("an array has a count or indices, or else rows of parameters")
        return submitter.array(spec, submitting.indices_of(count_or_indices), name=name)

    def array(self, array: int | Job) -> Array:
        """Return the array of that id, or the one a job belongs to; raises UnknownArray."""
        number = array.info()["array_id"] if isinstance(array, Job) else array
        if number is None:
            raise UnknownArray("the job belongs to no array")
        found = Array(self._context, whole("an array's id", number, least=1, most=2**63 - 1))
        found.info()
        return found

    def arrays(
        self, *, owner: str | None = None, live: bool = False, limit: int = 100
    ) -> list[dict[str, Any]]:
        """Return the newest arrays' `info()`, oldest first; if `live` those that have not ended."""
        whole("limit", limit, least=1, most=2**31)
        whose = text_if("owner", owner)
        return self._context.read(
            lambda c: array_models.listing(c, owner=whose, live=live, limit=limit)
        )

    def job(self, job_id: int) -> Job:
        """Return the job; raises UnknownJob."""
        checked = whole("a job's id", job_id, least=1, most=2**63 - 1)
        return Job(self._context, checked).refresh()

    def jobs(
        self,
        *,
        pool: Pool | str | None = None,
        state: str | Sequence[str] | None = None,
        array: int | None = None,
        name: str | None = None,
        ids: Sequence[int] | None = None,
        owner: str | None = None,
        tags: Sequence[str] | None = None,
        limit: int | None = 1000,
    ) -> list[Job]:
        """Return the jobs that meet every filter, oldest first; of more, the newest `limit`.

        `name` may hold `*`; `tags`: those that have all of them. Raises BadInput for an unknown
        state, UnknownPool.
        """
        pool_id = self._pool_id(pool)
        wanted = tags_of(tags) if tags is not None else None
        called, whose = text_if("name", name), text_if("owner", owner)
        if limit is not None:
            whole("limit", limit, least=0, most=2**31)
        found = self._context.read(
            lambda c: query.jobs(
                c,
                ids=ids,
                pool_id=pool_id,
                states=state,
                array_id=array,
                name=called,
                owner=whose,
                tags=wanted,
                limit=limit,
            )
        )
        return [Job(self._context, row["id"], row=row) for row in found]

    def wait(self, jobs: Job | Iterable[Job], *, timeout_s: float | None = None) -> list[Job]:
        """Wait until all have ended, well or not, and return them; raises WaitTimeout."""
        return completion.wait(self._context, _jobs(jobs), timeout_s=timeout_s)

    def as_completed(self, jobs: Iterable[Job], *, timeout_s: float | None = None) -> Iterator[Job]:
        """Yield the jobs in the order in which they end; pushed, not polled.

        Raises WaitTimeout when not all have ended `timeout_s` after the call.
        """
        return completion.as_completed(self._context, _jobs(jobs), timeout_s=timeout_s)

    def cancel(
        self,
        jobs: Job | int | Iterable[Job | int] | None = None,
        *,
        dry_run: bool = False,
        pool: Pool | str | None = None,
        **filters: Any,
    ) -> int:
        """Have jobs ended, running ones killed; return how many had not ended before.

        Instead of jobs or ids: `pool`, `array` (its `indices`), `states`, `name` (may hold `*`),
        `tag`, `owner`: all jobs that meet every filter given. `dry_run`: only count these.
        """
        if jobs is not None:
            if pool is not None or filters or dry_run:
                raise BadInput("cancel takes jobs or filters, not both")
            return cancelling.cancel_these(self._context, jobs)
        chosen = cancelling.filters_of(pool_id=self._pool_id(pool), **filters)
        act = cancelling.count_all if dry_run else cancelling.cancel_all
        return act(self._context, chosen)

    def suspend(self, jobs: Job | Iterable[Job]) -> int:
        """Suspend jobs as `Job.suspend` does; those that have ended are left as they are.

        Returns how many it did; raises what kept it from the first other one, the rest done.
        """
        return self._toggled(live.suspend, jobs)

    def resume(self, jobs: Job | Iterable[Job]) -> int:
        """Let suspended jobs go on as `Job.resume` does; see `suspend`."""
        return self._toggled(live.resume, jobs)

    def retry(self, job: Job | int, *, pool: Pool | str | None = None) -> Job:
        """Submit a job once more, as a new job of the same spec, in its pool or another.

        Its inputs are those stored with the first. Raises Refused when the pool has ended.
        """
        old = job if isinstance(job, Job) else self.job(job)
        row = self._pool_row(pool if pool is not None else old.pool)
        if row["state"] in (PoolState.CLOSING, PoolState.CLOSED, PoolState.PENDING_DELETE):
            raise Refused(f"pool {row['name']} is {row['state']}", hint="give another pool")
        made = self._context.commit(lambda c: requests.submit_again(c, old.id, pool_id=row["id"]))
        return Job(self._context, made)

    def follow(
        self, job: Job | int, *, over: threading.Event | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Yield a job's output as it comes: ("stdout" or "stderr", bytes); no longer once `over`."""
        return (job if isinstance(job, Job) else self.job(job)).follow(over=over)

    def job_history(self, job: Job | int) -> dict[str, Any]:
        """Return all that is known of a job: job, spec, attempts, outputs, events."""
        job_id = job.id if isinstance(job, Job) else job
        return self._context.read(lambda c: query.job_history(c, job_id))

    def lookout(self) -> Lookout:
        """Return what looks at pools, VMs and jobs at a glance, again and again."""
        return Lookout(self._context)

    def counts(self, pool: Pool | str | None = None, *, array: int | None = None) -> dict[str, int]:
        """Return how many jobs are in each state."""
        pool_id = self._pool_id(pool)
        return self._context.read(lambda c: query.counts(c, pool_id=pool_id, array_id=array))

    def reasons(
        self, pool: Pool | str | None = None, *, array: int | None = None
    ) -> dict[str, int]:
        """Return how many ended jobs there are by reason; OK is success."""
        pool_id = self._pool_id(pool)
        return self._context.read(lambda c: query.reasons(c, pool_id=pool_id, array_id=array))

    def close(self) -> None:
        """Close the connections; jobs, pools and the embedded default go on."""
        self._context.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submitter(
        self,
        pool: Pools | None,
        session: Session | Connection | None,
        allow_pending: bool,
        *,
        max_running: int | None = None,
    ) -> submitting.Submitter:
        return submitting.Submitter(
            self._context,
            pool_rows(self._context, pool),
            session=session,
            allow_pending=allow_pending,
            max_running=max_running,
        )

    def _toggled(self, change: live.Toggle, jobs: Job | Iterable[Job]) -> int:
        found = _jobs(jobs)
        outcomes = change(self._context, [job.id for job in found]) if found else {}
        for job in found:
            job.forget()
        for error in outcomes.values():
            if error is not None and not isinstance(error, Refused):
                raise error
        return sum(error is None for error in outcomes.values())


def _jobs(jobs: Job | Iterable[Job]) -> list[Job]:
    found = [jobs] if isinstance(jobs, Job) else list(jobs)
    for job in found:
        if not isinstance(job, Job):
            raise BadInput(f"a list of jobs is needed, not of {shown(job)}")
    return found
