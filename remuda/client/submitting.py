"""Submit jobs: one, many, or an array of one template; each call all or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection

from remuda.checks import shown, whole
from remuda.client.explaining import never_fits
from remuda.client.jobs import Job
from remuda.client.preparing import CHUNK, Chunk, Preparer, Spool
from remuda.client.template import Candidate, Template
from remuda.errors import BadInput, DataStagingError, NoResources, Refused
from remuda.models import query, requests
from remuda.models.states import PoolState
from remuda.models.submit import NewSpec, insert_jobs, new_array, owner_id
from remuda.spec import JobSpec

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from remuda.client.context import Context

T = TypeVar("T")

MAX_JOBS = 10_000_000
_ENDING = (PoolState.CLOSING, PoolState.CLOSED, PoolState.PENDING_DELETE)


class Submitter:
    """One submit call into one pool."""

    def __init__(
        self,
        context: Context,
        pool: Mapping[str, Any],
        *,
        session: Session | Connection | None = None,
        allow_pending: bool = False,
    ) -> None:
        """`pool`: its row. `session`: the caller's own, in whose transaction the jobs go."""
        self._context = context
        self._pool = pool
        self._session = session
        self._allow_pending = allow_pending
        self._memory = machine_memory(context, pool)
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

    def _candidate(self, spec: JobSpec) -> Candidate:
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
                    if one.spec.idempotency_key in known:
                        chunk.add_known(known[one.spec.idempotency_key])
                        continue
                    self._check(one.spec)
                    if isinstance(one.row, DataStagingError):
                        raise one.row
                    chunk.add(one.row, one.spec, index=one.index)
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
        """Raise Refused when the pool takes no jobs, NoResources when this one can never run."""
        name, state = self._pool["name"], self._pool["state"]
        if state in _ENDING:
            raise Refused(f"pool {name} is {state} and takes no jobs", hint="create a new one")
        if self._allow_pending:
            return
        needs = {"cores": spec.cores, "memory_bytes": spec.memory_bytes}
        limit = never_fits(needs, self._pool, memory_bytes=self._memory)
        if limit is not None:
            job = f"job {spec.name!r}" if spec.name else "the job"
            raise NoResources(f"{job} can never run: {limit}", hint="or submit with allow_pending")

    def _insert(self, spool: Spool, *, array_name: str | None) -> list[Job]:
        context = self._context

        def work(connection: Connection) -> tuple[int, list[int]]:
            owner = context.owner_id or owner_id(connection, context.owner)
            array_id = None
            if array_name is not None and spool.fresh:
                array_id = new_array(connection, owner=owner, name=array_name, size=spool.fresh)
            ids: list[int] = []
            for chunk in spool.chunks():
                made: list[int] = []
                if chunk.jobs:
                    made = insert_jobs(
                        connection,
                        chunk.specs,
                        chunk.jobs,
                        pool_id=self._pool["id"],
                        owner=owner,
                        array_id=array_id,
                    )
                ids += chunk.ids(made)
            return owner, ids

        if self._session is None:
            context.owner_id, ids = context.commit(work)
            return [Job(context, i) for i in ids]
        theirs = _connection(self._session)
        _, ids = work(theirs)
        transaction = requests.this_transaction(theirs)
        return [Job(context, i, transaction=transaction) for i in ids]


def machine_memory(context: Context, pool: Mapping[str, Any]) -> int | None:
    """Return the memory of this machine if the pool's VMs are this machine, else None."""
    if not context.settings.embedded or pool["provider"] != "local":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
