"""Accept jobs: many rows by few statements, inside whatever transaction the caller has open."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, text

from remuda.models import quotas
from remuda.models.database import rows
from remuda.retries import retry_row
from remuda.spec import JobSpec
from remuda.spec_files import filler


@dataclass(frozen=True, slots=True)
class NewSpec:
    """What to run; see the table `job_specs`."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    output_dir: str | None = None
    overwrite: bool = True
    workdir: str = ""
    prologue: list[str] | None = None
    epilogue: list[str] | None = None
    join_output: bool = False
    output_limit_bytes: int = 64 << 20
    wait_for_resources: bool | None = None


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job of the spec at index `spec` of the same call; see the table `jobs`."""

    spec: int
    name: str = ""
    cores: int = 1
    memory_bytes: int | None = None
    walltime_s: float | None = None
    priority: int = 0
    max_attempts: int = 1
    array_index: int | None = None
    params: dict[str, str] | None = None
    idempotency_key: str | None = None
    follow: bool = False
    retry: dict[str, Any] | None = None
    gpus: int = 0
    architecture: str | None = None
    constraints: dict[str, Any] | None = None
    sandbox: str = ""
    tags: list[str] = field(default_factory=list)
    pin_cpus: bool = False
    max_queue_s: float | None = None
    unmet: int = 0
    deferrable: bool | None = None  # see `put_off`; no column

    def __reduce__(self) -> tuple[Any, ...]:
        return NewJob, _JOB[1](
            self
        )  # what a frozen dataclass does by itself takes ten times as long


def new_job(
    spec: JobSpec,
    place: int,
    *,
    index: int | None = None,
    params: dict[str, str] | None = None,
) -> NewJob:
    """Return the row of a job of the spec at `place`, its name filled in."""
    templated = "{" in spec.name and (index is not None or params is not None)
    return NewJob(
        spec=place,
        name=filler(index, params)(spec.name) if templated else spec.name,
        cores=spec.cores,
        memory_bytes=spec.memory_bytes,
        walltime_s=spec.walltime_s,
        priority=spec.priority,
        max_attempts=spec.retries + 1,
        array_index=index,
        params=params,
        idempotency_key=spec.idempotency_key,
        follow=spec.follow,
        retry=retry_row(spec.retry),
        gpus=spec.gpus,
        architecture=spec.architecture,
        constraints=dict(spec.constraints) if spec.constraints else None,
        sandbox=spec.sandbox,
        tags=list(spec.tags),
        pin_cpus=spec.pin_cpus,
        max_queue_s=spec.max_queue_s,
        unmet=len(spec.afters),
        deferrable=spec.deferrable or None,
    )


_INSERT_SPECS = text("""
    INSERT INTO job_specs (id, command, environment, inputs, outputs, output_dir, overwrite, workdir,
                           prologue, epilogue, join_output, output_limit_bytes,
                           wait_for_resources)
    OVERRIDING SYSTEM VALUE
    SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
        id bigint, command jsonb, environment jsonb, inputs jsonb, outputs jsonb, output_dir text,
        overwrite boolean, workdir text, prologue jsonb, epilogue jsonb, join_output boolean,
        output_limit_bytes bigint, wait_for_resources boolean)
""")

# A key that is already there leaves the first job as it is: a repeated submit finds it.
_INSERT_JOBS = text("""
    INSERT INTO jobs (id, pool_id, pool_ids, owner_id, spec_id, array_id, array_index, params, name,
                      idempotency_key, cores, memory_bytes, walltime_s, priority, max_attempts,
                      follow, retry, gpus, architecture, constraints, sandbox, tags, pin_cpus,
                      max_queue_s, unmet, queue_id)
    OVERRIDING SYSTEM VALUE
    SELECT id, :pool_id, CAST(:pool_ids AS bigint[]), :owner_id, spec_id, :array_id, array_index,
           params, name, idempotency_key, cores, memory_bytes, walltime_s, priority, max_attempts,
           follow, retry, gpus, architecture, constraints, sandbox, tags, pin_cpus, max_queue_s,
           unmet, (SELECT a.id FROM arrays a WHERE a.id = :array_id AND a.size >= 100)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
        id bigint, spec_id bigint, array_index int, params jsonb, name text, idempotency_key text,
        cores int, memory_bytes bigint, walltime_s float8, priority smallint, max_attempts int,
        follow boolean, retry jsonb, gpus int, architecture text, constraints jsonb, sandbox text,
        tags jsonb, pin_cpus boolean, max_queue_s float8, unmet int)
    ON CONFLICT (owner_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
""")


# And whether a quota says how many of them may wait.
_TAKE_JOB_IDS = text("""
    SELECT nextval(pg_get_serial_sequence('jobs', 'id')) AS id,
           EXISTS (SELECT FROM quotas WHERE max_queued IS NOT NULL AND owner_id IN (
             SELECT unnest(ARRAY[id, group_id]) FROM owners WHERE id = :owner)) AS limited
    FROM generate_series(1, :count)
""")


def owner_id(connection: Connection, name: str) -> int:
    """Return the id of the owner, made when new."""
    found = connection.scalar(text("SELECT id FROM owners WHERE name = :name"), {"name": name})
    if found is None:
        connection.execute(
            text("INSERT INTO owners (name) VALUES (:name) ON CONFLICT DO NOTHING"), {"name": name}
        )
        found = connection.scalar(text("SELECT id FROM owners WHERE name = :name"), {"name": name})
    return int(found)


def new_array(
    connection: Connection, *, owner: int, name: str, size: int, max_running: int | None = None
) -> int:
    """Insert an array of `size` jobs and return its id."""
    statement = text(
        """INSERT INTO arrays (owner_id, name, size, max_running)
           VALUES (:owner, :name, :size, :most) RETURNING id"""
    )
    given = {"owner": owner, "name": name, "size": size, "most": max_running}
    return int(connection.execute(statement, given).scalar_one())


def fit_array(connection: Connection, array_id: int) -> None:
    """Set the array's size to its jobs; keys may have found others' jobs instead of making some."""
    made = connection.scalar(
        text("SELECT count(*) FROM jobs WHERE array_id = :id"), {"id": array_id}
    )
    statement = "UPDATE arrays SET size = :made WHERE id = :id AND size <> :made"
    if not made:
        statement = "DELETE FROM arrays WHERE id = :id"
    connection.execute(text(statement), {"id": array_id, **({"made": made} if made else {})})


def insert_jobs(
    connection: Connection,
    specs: Sequence[NewSpec],
    jobs: Sequence[NewJob],
    *,
    pool_id: int,
    owner: int,
    array_id: int | None = None,
    pool_ids: Sequence[int] | None = None,
) -> list[int]:
    """Insert jobs in NEW and return their ids in order; the wake-up leaves with the commit.

    `pool_ids`: all pools they may go to in order of preference, `pool_id` being the first.
    A job whose idempotency key its owner has used gives the first job's id. Raises Refused when more
    of the owner's jobs would wait than may.
    """
    spec_ids = _take_ids(connection, "job_specs", len(specs))
    taken = connection.execute(_TAKE_JOB_IDS, {"count": len(jobs), "owner": owner}).all()
    job_ids = [int(row.id) for row in taken]
    if taken and taken[0].limited:
        quotas.refuse_over_queue(connection, owner, pool_id, len(jobs))
    _insert(connection, _INSERT_SPECS, zip(spec_ids, map(_fields, specs), strict=True))
    _insert(
        connection,
        _INSERT_JOBS,
        (
            (i, {**_fields(job), "spec_id": spec_ids[job.spec]})
            for i, job in zip(job_ids, jobs, strict=True)
        ),
        pool_id=pool_id,
        owner_id=owner,
        array_id=array_id,
        pool_ids=list(pool_ids) if pool_ids is not None and len(pool_ids) > 1 else None,
    )
    keyed = {job.idempotency_key for job in jobs if job.idempotency_key is not None}
    if not keyed:
        return job_ids
    first = {
        row["idempotency_key"]: int(row["id"])
        for row in rows(
            connection,
            "SELECT id, idempotency_key FROM jobs"
            " WHERE owner_id = :owner AND idempotency_key = ANY(:keys)",
            owner=owner,
            keys=sorted(keyed),
        )
    }
    return [
        first[job.idempotency_key] if job.idempotency_key is not None else job_id
        for job_id, job in zip(job_ids, jobs, strict=True)
    ]


def put_off(
    connection: Connection,
    job_ids: Sequence[int],
    jobs: Sequence[NewJob],
    *,
    delay_of: Callable[[float, float | None], float],
) -> None:
    """Put the deferrable ones of jobs that were just inserted off, to be called in the same transaction.

    `delay_of`: by how many seconds, from what it may wait for its start and its walltime.
    """
    delays: dict[tuple[float, float | None], list[int]] = {}
    for job_id, job in zip(job_ids, jobs, strict=True):
        if job.deferrable and job.max_queue_s is not None:
            delays.setdefault((job.max_queue_s, job.walltime_s), []).append(job_id)
    for (within_s, walltime_s), ids in delays.items():
        delay_s = delay_of(within_s, walltime_s)
        if delay_s > 0:
            connection.execute(
                text(
                    """UPDATE jobs SET not_before = now() + make_interval(secs => :delay)
                       WHERE id = ANY(:ids) AND state = 'NEW' AND epoch = 0 AND not_before IS NULL"""
                ),
                {"ids": ids, "delay": delay_s},
            )


def _take_ids(connection: Connection, table: str, count: int) -> list[int]:
    statement = text(
        "SELECT nextval(pg_get_serial_sequence(:table, 'id')) FROM generate_series(1, :count)"
    )
    return [int(i) for i in connection.scalars(statement, {"table": table, "count": count})]


def _insert(
    connection: Connection, statement: Any, items: Iterable[tuple[int, dict[str, Any]]], **more: Any
) -> None:
    payload = json.dumps([{**fields, "id": i} for i, fields in items])
    connection.execute(statement, {"rows": payload, **more})


def _fields(row: NewSpec | NewJob) -> dict[str, Any]:
    """Return the columns of a row that are not NULL; `dataclasses.asdict` copies, slowly."""
    names, values = _JOB if type(row) is NewJob else _SPEC
    return {n: v for n, v in zip(names, values(row), strict=True) if v is not None}


_JOB = (tuple(NewJob.__slots__), attrgetter(*NewJob.__slots__))
_SPEC = (tuple(NewSpec.__slots__), attrgetter(*NewSpec.__slots__))
