"""Submit jobs: one, many, or an array of one template; each call all or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, starmap
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection

from remuda.checks import shown, whole
from remuda.client.fitting import architecture_here, machine_memory, never_fits
from remuda.client.jobs import Job
from remuda.client.parameters import MAX_JOBS, Row
from remuda.client.preparing import CHUNK, Chunk, Preparer, Spool
from remuda.client.template import Candidate, Template
from remuda.deferring import best_delay_s, read_hours
from remuda.dependencies import Plan
from remuda.errors import BadInput, DataStagingError, NoResources, Refused
from remuda.models import query, requests
from remuda.models.database import database_time
from remuda.models.demand import PoolLimits, limits_of
from remuda.models.dependencies import insert_dependencies, resolve
from remuda.models.states import PoolState
from remuda.models.submit import (
    NewJob,
    NewSpec,
    fit_array,
    insert_jobs,
    new_array,
    owner_id,
    put_off,
)
from remuda.spec import JobSpec

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from remuda.client.context import Context

T = TypeVar("T")

_ENDING = (PoolState.CLOSING, PoolState.CLOSED, PoolState.PENDING_DELETE)


class Submitter:
    """One submit call into a pool, or several in order of preference."""

    def __init__(
        self,
        context: Context,
        pools: Sequence[Mapping[str, Any]],
        *,
        session: Session | Connection | None = None,
        allow_pending: bool = False,
        max_running: int | None = None,
    ) -> None:
        """`pools`: their rows. `session`: the caller's own, in whose transaction the jobs go.

        `max_running`: how many jobs of the array may be on machines at once.
        """
        self._context = context
        self._pools = pools
        self._session = session
        self._allow_pending = allow_pending
        self._max_running = max_running
        self._plan = Plan()
        self._memory = {pool["id"]: machine_memory(context, pool) for pool in pools}
        self._limits: dict[int, PoolLimits] | None = None
        self._prepare = Preparer(
            context.storage, output_limit_bytes=context.settings.output_limit_bytes
        )

    def one(self, spec: JobSpec) -> Job:
        """Submit a job of no array."""
        known = self._known([spec])
        if known:
            return Job(self._context, known[spec.idempotency_key])
        return self._submit([self._candidate(spec)])[0]

    def many(self, specs: Iterable[JobSpec], *, name: str) -> list[Job]:
        """Submit the specs as one array; they need not all fit in memory."""
        return self._submit(map(self._candidate, specs), array_name=name)

    def array(self, spec: JobSpec, indices: Iterable[int | str], *, name: str) -> list[Job]:
        """Submit a job for each index, `{index}` filled in.

        Numbered jobs share a spec that is filled in when they start, unless their inputs differ.
        """
        template = Template(_job_spec(spec), self._staged)
        return self._submit(map(template.candidate, indices), array_name=name or spec.name)

    def rows(self, spec: JobSpec, rows: Iterator[Row], *, name: str) -> list[Job]:
        """Submit a job for each row of parameters, numbered from 0; as `array` does."""
        spec = _job_spec(spec)
        first = next(rows, None)
        if first is None:
            raise BadInput("there is no row of parameters")
        template = Template(spec, self._staged, names=tuple(first))
        candidates = starmap(template.row, enumerate(chain([first], rows)))
        return self._submit(candidates, array_name=name or spec.name)

    def _candidate(self, spec: JobSpec) -> Candidate:
        self._plan.note(_job_spec(spec))
        return Candidate(spec, self._staged(spec))

    def _staged(self, spec: JobSpec) -> NewSpec | DataStagingError:
        """Store the inputs as they are now, while whoever yields specs has not gone on.

        A job with a key may have been submitted before, when its files were still there: its
        error is returned, to be raised if it was not.
        """
        if _job_spec(spec).idempotency_key is None:
            self._check(spec)
            return self._prepare.spec(spec)
        try:
            return self._prepare.spec(spec)
        except DataStagingError as error:
            return error

    def _submit(
        self, candidates: Iterable[Candidate], *, array_name: str | None = None
    ) -> list[Job]:
        with Spool() as spool:
            for some in _chunks(candidates):
                chunk = Chunk()
                known = self._known([one.spec for one in some])
                for one in some:
                    there = one.spec.idempotency_key in known
                    self._plan.add(one.spec, index=one.index, known=there)
                    if there:
                        chunk.add_known(known[one.spec.idempotency_key])
                        continue
                    self._check(one.spec)
                    if isinstance(one.row, DataStagingError):
                        raise one.row
                    chunk.add(one.row, one.spec, index=one.index, params=one.params)
                spool.put(chunk)
            return self._insert(spool, array_name=array_name) if spool.count else []

    def _known(self, specs: Sequence[JobSpec]) -> dict[str | None, int]:
        """Return the jobs that were submitted before with the same keys, by key."""
        keys = [key for spec in specs if (key := _job_spec(spec).idempotency_key) is not None]
        if not keys:
            return {}
        found = self._context.read(lambda c: query.job_ids_by_key(c, self._context.owner, keys))
        return {key: found[key] for key in keys if key in found}

    def _check(self, spec: JobSpec) -> None:
        """Raise Refused when a pool takes no jobs, NoResources when no pool can ever run this one."""
        for pool in self._pools:
            if pool["state"] in _ENDING:
                raise Refused(
                    f"pool {pool['name']} is {pool['state']} and takes no jobs",
                    hint="create a new one",
                )
        if self._allow_pending:
            return
        limits = []
        for pool in self._pools:
            limit = self._never_fits(spec, pool)
            if limit is None:
                return
            limits.append(limit)
        job = f"job {spec.name!r}" if spec.name else "the job"
        told = "; ".join(limits)
        hint = "with allow_pending it is submitted all the same"
        raise NoResources(f"{job} can never run: {told}", hint=hint)

    def _never_fits(self, spec: JobSpec, pool: Mapping[str, Any]) -> str | None:
        needs: dict[str, Any] = {"cores": spec.cores, "memory_bytes": spec.memory_bytes}
        memory = self._memory[pool["id"]]
        told = spec.memory_bytes is None or memory or pool["memory_bytes_per_vm"]
        if told and not (spec.gpus or spec.architecture or spec.constraints):
            return never_fits(needs, pool, memory_bytes=memory)
        if self._limits is None:
            ids = [pool["id"] for pool in self._pools]
            self._limits = self._context.read(lambda c: limits_of(c, ids))
        return never_fits(
            {
                **needs,
                "gpus": spec.gpus,
                "architecture": spec.architecture,
                "constraints": spec.constraints,
            },
            pool,
            memory_bytes=memory,
            kinds=self._limits[pool["id"]].kinds,
            here=architecture_here(self._context, pool),
        )

    def _put_off(self, connection: Connection, ids: list[int], jobs: Sequence[NewJob]) -> None:
        hours = read_hours(self._context.settings.hours_file)
        now = database_time(connection)
        put_off(
            connection,
            ids,
            jobs,
            delay_of=lambda within_s, run_s: best_delay_s(
                hours, now, within_s=within_s, run_s=run_s
            ),
        )

    def _insert(self, spool: Spool, *, array_name: str | None) -> list[Job]:
        context = self._context
        edges = self._plan.edges()

        def work(connection: Connection) -> tuple[int, list[int]]:
            owner = context.owner_id or owner_id(connection, context.owner)
            waits = resolve(connection, edges, owner=owner, indices=self._plan.indices)
            array_id = None
            if array_name is not None and spool.fresh:
                array_id = new_array(
                    connection,
                    owner=owner,
                    name=array_name,
                    size=spool.fresh,
                    max_running=self._max_running,
                )
            ids: list[int] = []
            for chunk in spool.chunks():
                made: list[int] = []
                if chunk.jobs:
                    made = insert_jobs(
                        connection,
                        chunk.specs,
                        chunk.jobs,
                        pool_id=self._pools[0]["id"],
                        pool_ids=[pool["id"] for pool in self._pools],
                        owner=owner,
                        array_id=array_id,
                    )
                    if any(job.deferrable for job in chunk.jobs):
                        self._put_off(connection, made, chunk.jobs)
                ids += chunk.ids(made)
            if array_id is not None and self._plan.keyed:
                fit_array(connection, array_id)
            if waits:
                insert_dependencies(connection, waits, ids, lock=self._session is None)
            return owner, ids

        if self._session is None:
            context.owner_id, ids = context.commit(work)
            return [Job(context, i) for i in ids]
        theirs = _connection(self._session)
        _, ids = work(theirs)
        transaction = requests.this_transaction(theirs)
        return [Job(context, i, transaction=transaction) for i in ids]


def indices_of(count_or_indices: int | Iterable[int | str]) -> Iterable[int | str]:
    """Return the indices of an array given by their count or one by one; raises BadInput."""
    if isinstance(count_or_indices, (str, bytes)):
        raise BadInput("the indices of an array are a count or a list", hint="use [...]")
    if isinstance(count_or_indices, Iterable):
        return count_or_indices
    return range(whole("the count of an array", count_or_indices, least=1, most=MAX_JOBS))


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    source = iter(items)
    count = 0
    while some := list(islice(source, CHUNK)):
        count += len(some)
        if count > MAX_JOBS:
            raise BadInput(f"one call may submit at most {MAX_JOBS} jobs")
        yield some


def _job_spec(spec: Any) -> JobSpec:
    if not isinstance(spec, JobSpec):
        raise BadInput(f"a job is submitted as a JobSpec, not {shown(spec)}")
    return spec


def _connection(session: Any) -> Connection:
    if isinstance(session, Connection):
        return session
    if hasattr(session, "run_sync"):
        raise BadInput(
            "the session is asynchronous",
            hint="await session.run_sync(lambda s: client.submit(spec, session=s))",
        )
    found = session.connection() if callable(getattr(session, "connection", None)) else None
    if not isinstance(found, Connection):
        raise BadInput(f"session must be a SQLAlchemy Session, not {shown(session)}")
    return found
