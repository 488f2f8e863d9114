"""Submit jobs: one, many, or an array of one template; each call all or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection

from remuda.checks import shown, whole
from remuda.client.explaining import never_fits
from remuda.client.jobs import Job
from remuda.client.preparing import CHUNK, Chunk, Preparer, Spool
from remuda.errors import BadInput, NoResources, Refused
from remuda.models import query, requests
from remuda.models.states import PoolState
from remuda.models.submit import NewSpec, insert_jobs, new_array, owner_id
from remuda.spec import INDEX, JobSpec

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from remuda.client.context import Context

T = TypeVar("T")

MAX_JOBS = 10_000_000
_MOST_INDEX = 2**31 - 1
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
        with Spool() as spool:
            spool.put(self._chunk([spec]))
            return self._insert(spool)[0]

    def many(self, specs: Iterable[JobSpec], *, name: str) -> list[Job]:
        """Submit the specs as one array; they need not all fit in memory."""
        with Spool() as spool:
            for some in _chunks(specs):
                spool.put(self._chunk(some))
            return self._insert(spool, array_name=name)

    def array(self, spec: JobSpec, indices: Iterable[int | str], *, name: str) -> list[Job]:
        """Submit a job for each index, `{index}` filled in.

        Numbered jobs share a spec that is filled in when they start, unless their inputs differ.
        """
        template = _Template(_job_spec(spec), self._prepare)
        with Spool() as spool:
            for some in _chunks(indices):
                chunk = Chunk()
                keyed = [template.keyed(index) for index in some]
                known = self._known(keyed)
                for one, index in zip(keyed, some, strict=True):
                    if one.idempotency_key in known:
                        chunk.add_known(known[one.idempotency_key])
                    else:
                        self._check(one)
                        template.add(chunk, one, index)
                spool.put(chunk)
            return self._insert(spool, array_name=name or spec.name)

    def _chunk(self, specs: Sequence[JobSpec]) -> Chunk:
        chunk = Chunk()
        known = self._known(specs)
        row, before = None, None
        for spec in specs:
            if _job_spec(spec).idempotency_key in known:
                chunk.add_known(known[spec.idempotency_key])
                continue
            self._check(spec)
            if row is None or spec is not before or spec.input_files:
                row = self._prepare.spec(spec)
            chunk.add(row, spec)
            before = spec
        return chunk

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

    def _insert(self, spool: Spool, *, array_name: str | None = None) -> list[Job]:
        context, pool_id = self._context, self._pool["id"]

        def work(connection: Connection) -> list[int]:
            owner = context.owner_id or owner_id(connection, context.owner)
            owners.append(owner)
            array_id = None
            if array_name is not None and spool.fresh:
                array_id = new_array(connection, owner=owner, name=array_name, size=spool.fresh)
            ids: list[int] = []
            for chunk in spool.chunks():
                made = (
                    insert_jobs(
                        connection,
                        chunk.specs,
                        chunk.jobs,
                        pool_id=pool_id,
                        owner=owner,
                        array_id=array_id,
                    )
                    if chunk.jobs
                    else []
                )
                ids += chunk.ids(made)
            return ids

        owners: list[int] = []
        if not spool.count:
            return []
        if self._session is None:
            made = context.commit(work)
            context.owner_id = owners[-1]
            return [Job(context, i) for i in made]
        theirs = _connection(self._session)
        ids = work(theirs)
        transaction = requests.this_transaction(theirs)
        return [Job(context, i, transaction=transaction) for i in ids]


class _Template:
    """The spec of an array, filled in index by index."""

    def __init__(self, spec: JobSpec, prepare: Preparer) -> None:
        self._spec = spec
        self._prepare = prepare
        self._shared: NewSpec | None = None
        self._seen: set[str] = set()
        self._longest = -1
        self._differs = any(INDEX in file.local for file in spec.input_files)

    def keyed(self, index: int | str) -> JobSpec:
        """Return the spec with the idempotency key of one job; checks the index."""
        text = str(index) if type(index) is int else _index(index)
        if text in self._seen:
            raise BadInput(f"index {shown(index)} is there twice")
        self._seen.add(text)
        key = self._spec.idempotency_key
        if key is None:
            return self._spec
        key = key.replace(INDEX, text) if INDEX in key else f"{key}-{text}"
        return replace(self._spec, idempotency_key=key)

    def add(self, chunk: Chunk, one: JobSpec, index: int | str) -> None:
        """Add the job of an index: filled in late if it has a number and the same files."""
        number = index if isinstance(index, int) and abs(index) <= _MOST_INDEX else None
        if number is None or self._differs:
            filled = one.filled(index)
            if number is None:
                filled = replace(filled, environment=_with_index(filled.environment, str(index)))
            chunk.add(self._prepare.spec(filled), filled, index=number)
            return
        if len(str(index)) > self._longest:
            self._longest = len(str(index))
            self._spec.filled(index)  # refuses names that become too long
        if self._shared is None:
            self._shared = self._prepare.spec(self._spec)
        chunk.add(self._shared, one, index=number)


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


def _index(index: Any) -> str:
    if isinstance(index, bool) or not isinstance(index, (str, int)):
        raise BadInput(f"an index must be a whole number or text, not {shown(index)}")
    text = str(index)
    if not text or "\0" in text or len(text.encode("utf-8", "replace")) > 255:
        raise BadInput(f"{shown(text)} cannot be an index")
    return text


def _with_index(environment: Mapping[str, str] | None, text: str) -> dict[str, str]:
    return {**(environment or {}), "REMUDA_ARRAY_INDEX": text}


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
