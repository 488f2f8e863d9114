"""The client: one object from which everything a producer or operator needs can be reached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from remuda.checks import seconds, shown, whole
from remuda.client import completion, explaining, leases, pool_settings, submitting
from remuda.client.context import Context
from remuda.client.jobs import Job
from remuda.client.pools import Pool, create, default_pool, pool_row
from remuda.client.vms import VmInfo, vm_info
from remuda.config import Settings, load_settings
from remuda.errors import BadInput, Refused
from remuda.models import query, requests
from remuda.models.cancel import request_cancel
from remuda.models.states import OPEN_POOL, PoolState
from remuda.spec import JobSpec

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

_MAX_TTL_S = 7 * 86_400


class Client:
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

    # Pools

    def create_pool(
        self,
        name: str,
        *,
        provider: str = "local",
        backend: str | None = None,
        image: str = "default",
        slots_per_vm: int = 1,
        memory_bytes_per_vm: int | None = None,
        instance_count: int = 1,
        settings: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        isolation: str = "shared",
        heartbeat_s: float | None = None,
        stalling_interval_s: float | None = None,
    ) -> Pool:
        """Make a pool, UNSUBMITTED: it takes jobs, and makes VMs once it is submitted.

        `instance_count` VMs are kept unless `setup_elastic` is called. A VM silent for
        `stalling_interval_s` (None: six heartbeats) is replaced and its jobs run again. Raises
        BadInput, AlreadyExists.
        """
        if heartbeat_s is not None and stalling_interval_s is None:
            stalling_interval_s = (
                6 * pool_settings.checked({"heartbeat_s": heartbeat_s})["heartbeat_s"]
            )
        given = {
            "slots_per_vm": slots_per_vm,
            "memory_bytes_per_vm": memory_bytes_per_vm,
            "instance_count": instance_count,
            "settings": dict(settings) if settings else {},
            "tags": list(tags) if not isinstance(tags, str) else tags,
            "isolation": isolation,
            "heartbeat_s": heartbeat_s,
            "stalling_interval_s": stalling_interval_s,
        }
        return create(
            self._context,
            name,
            provider=provider,
            backend=backend,
            image=image,
            fields=pool_settings.checked({k: v for k, v in given.items() if v is not None}),
        )

    def pool(self, name: str) -> Pool:
        """Return the pool of that name (if it was closed and made anew, the open one).

        Raises UnknownPool.
        """
        pool_id = self._pool_row(name)["id"]
        return Pool(self._context, self._context.read(lambda c: query.pools(c, ids=[pool_id]))[0])

    def pools(self, *, all: bool = False) -> list[Pool]:
        """Return the pools by name; closed ones too if `all`."""
        found = self._context.read(lambda c: query.pools(c, ended=all))
        return [Pool(self._context, row) for row in found]

    # Jobs

    def submit(
        self,
        spec: JobSpec,
        *,
        pool: Pool | str | None = None,
        session: Session | Connection | None = None,
        allow_pending: bool = False,
    ) -> Job:
        """Submit a job (None: to the pool `default`, made when it is missing) and return it.

        With `session` it goes into that open transaction: rolled back or visible with it. Raises
        NoResources when it could never run there (unless `allow_pending`), Refused when the pool
        has ended, DataStagingError when an input is missing, DatabaseUnavailable.
        """
        return self._submitter(pool, session, allow_pending).one(spec)

    def submit_many(
        self,
        specs: Iterable[JobSpec],
        *,
        pool: Pool | str | None = None,
        name: str = "",
        session: Session | Connection | None = None,
        allow_pending: bool = False,
    ) -> list[Job]:
        """Submit jobs as one array, all or none; the specs may come from a long generator."""
        return self._submitter(pool, session, allow_pending).many(specs, name=name)

    def submit_array(
        self,
        spec: JobSpec,
        count_or_indices: int | Iterable[int | str],
        *,
        pool: Pool | str | None = None,
        name: str = "",
        session: Session | Connection | None = None,
        allow_pending: bool = False,
    ) -> list[Job]:
        """Submit a job for each index (a count: from 0), all or none.

        `{index}` is filled in in the command, the name, the files and `output_dir`.
        """
        indices = submitting.indices_of(count_or_indices)
        return self._submitter(pool, session, allow_pending).array(spec, indices, name=name)

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
        limit: int | None = 1000,
    ) -> list[Job]:
        """Return the jobs that meet every filter, oldest first; of more, the newest `limit`.

        `name` may hold `*`. Raises BadInput for an unknown state, UnknownPool.
        """
        pool_id = self._pool_id(pool)
        if limit is not None:
            whole("limit", limit, least=0, most=2**31)
        found = self._context.read(
            lambda c: query.jobs(
                c,
                ids=ids,
                pool_id=pool_id,
                states=state,
                array_id=array,
                name=name,
                owner=owner,
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

    def cancel(self, jobs: Job | Iterable[Job]) -> int:
        """Have jobs ended, running ones killed; return how many had not ended before."""
        found = _jobs(jobs)
        ids = [job.id for job in found]
        touched = self._context.commit(lambda c: request_cancel(c, ids)) if ids else []
        for job in found:
            job.forget()
        return len(touched)

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

    def follow(self, job: Job | int) -> Iterator[tuple[str, bytes]]:
        """Yield a job's output as it comes: ("stdout" or "stderr", bytes)."""
        return (job if isinstance(job, Job) else self.job(job)).follow()

    def explain(self, job: Job | int) -> list[str]:
        """Tell in sentences why the job is where it is, and what it waits for."""
        job_id = job.id if isinstance(job, Job) else job
        facts = self._context.read(lambda c: query.explain_facts(c, job_id))
        memory = submitting.machine_memory(self._context, facts["pool"])
        return explaining.explain_job({**facts, "memory_bytes": memory})

    def history(self, job: Job | int) -> dict[str, Any]:
        """Return all that is known of a job: job, spec, attempts, outputs, events."""
        job_id = job.id if isinstance(job, Job) else job
        return self._context.read(lambda c: query.job_history(c, job_id))

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

    # VMs

    def vms(
        self,
        *,
        pool: Pool | str | None = None,
        state: str | Sequence[str] | None = None,
        all: bool = False,
    ) -> list[VmInfo]:
        """Return the VMs that meet every filter; gone ones (HALTED) only if `all` or asked for."""
        pool_id = self._pool_id(pool)
        found = self._context.read(
            lambda c: query.vms(c, pool_id=pool_id, states=state, halted=all)
        )
        return [vm_info(row) for row in found]

    def vm(self, vm_id: int) -> VmInfo:
        """Return one VM; raises InstanceNotFound."""
        return vm_info(self._context.read(lambda c: query.vm(c, vm_id)))

    def drain_vm(self, vm_id: int) -> None:
        """Have a VM take no new work and stop when the old is done.

        Raises InstanceNotFound, IllegalTransition when it is stopping already.
        """
        self._context.commit(lambda c: requests.drain_vm(c, vm_id))

    def terminate_vm(self, vm_id: int, *, now: bool = False) -> bool:
        """Have a VM removed when its work is done, or `now`: its jobs then run again elsewhere.

        Returns whether it goes at once. Raises InstanceNotFound, IllegalTransition.
        """
        return self._context.commit(lambda c: requests.stop_vm(c, vm_id, now=now))

    def acquire(
        self,
        *,
        pools: Sequence[Pool | str],
        owner: str | None = None,
        sandbox: str = "",
        slots: int = 1,
        ttl_s: float = 900,
        timeout: float | None = None,
    ) -> leases.Lease:
        """Lease `slots` of a VM without a job, from the first of the pools that has one free.

        It renews itself until released; without that it ends after `ttl_s`. `timeout`: how long to
        wait, in seconds, the pools growing meanwhile; None: not at all. Raises NoVmAvailable,
        UnknownPool, Refused when a pool is not open.
        """
        if isinstance(pools, (str, Pool)) or not pools:
            raise BadInput("pools must be a list of at least one pool")
        rows = [self._pool_row(pool) for pool in pools]
        whole("slots", slots, least=1, most=100_000)
        for row in rows:
            if row["state"] not in (*OPEN_POOL, PoolState.FAILURE):
                raise Refused(f"pool {row['name']} is {row['state']}", hint="submit it first")
        if all(slots > row["slots_per_vm"] for row in rows):
            raise BadInput(f"no VM of these pools has {slots} slots (slots_per_vm)")
        return leases.acquire(
            self._context,
            pool_ids=[row["id"] for row in rows],
            owner=owner or self._context.owner,
            sandbox=sandbox,
            slots=slots,
            ttl_s=seconds("ttl_s", ttl_s, most=_MAX_TTL_S),
            timeout_s=None
            if timeout is None
            else seconds("timeout", timeout, most=_MAX_TTL_S, zero=True),
        )

    def close(self) -> None:
        """Close the connections; jobs, pools and the embedded default go on."""
        self._context.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submitter(
        self, pool: Pool | str | None, session: Session | Connection | None, allow_pending: bool
    ) -> submitting.Submitter:
        row = default_pool(self._context) if pool is None else self._pool_row(pool)
        return submitting.Submitter(
            self._context, row, session=session, allow_pending=allow_pending
        )

    def _pool_row(self, pool: Pool | str) -> Mapping[str, Any]:
        return pool_row(self._context, pool)

    def _pool_id(self, pool: Pool | str | None) -> int | None:
        if pool is None or isinstance(pool, Pool):
            return pool.id if pool is not None else None
        return int(self._pool_row(pool)["id"])


def _jobs(jobs: Job | Iterable[Job]) -> list[Job]:
    found = [jobs] if isinstance(jobs, Job) else list(jobs)
    for job in found:
        if not isinstance(job, Job):
            raise BadInput(f"a list of jobs is needed, not of {shown(job)}")
    return found
