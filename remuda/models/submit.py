"""Accept jobs: many rows by few statements, inside whatever transaction the caller has open."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows


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


_INSERT_SPECS = text("""
    INSERT INTO job_specs (id, command, environment, inputs, outputs, output_dir, overwrite, workdir,
                           prologue, epilogue, join_output, output_limit_bytes)
    OVERRIDING SYSTEM VALUE
    SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
        id bigint, command jsonb, environment jsonb, inputs jsonb, outputs jsonb, output_dir text,
        overwrite boolean, workdir text, prologue jsonb, epilogue jsonb, join_output boolean,
        output_limit_bytes bigint)
""")

# A key that is already there leaves the first job as it is: a repeated submit finds it.
_INSERT_JOBS = text("""
    INSERT INTO jobs (id, pool_id, pool_ids, owner_id, spec_id, array_id, array_index, params, name,
                      idempotency_key, cores, memory_bytes, walltime_s, priority, max_attempts,
                      follow, retry, gpus, architecture, constraints, sandbox, tags, pin_cpus,
                      max_queue_s)
    OVERRIDING SYSTEM VALUE
    SELECT id, :pool_id, CAST(:pool_ids AS bigint[]), :owner_id, spec_id, :array_id, array_index,
           params, name, idempotency_key, cores, memory_bytes, walltime_s, priority, max_attempts,
           follow, retry, gpus, architecture, constraints, sandbox, tags, pin_cpus, max_queue_s
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
        id bigint, spec_id bigint, array_index int, params jsonb, name text, idempotency_key text,
        cores int, memory_bytes bigint, walltime_s float8, priority smallint, max_attempts int,
        follow boolean, retry jsonb, gpus int, architecture text, constraints jsonb, sandbox text,
        tags jsonb, pin_cpus boolean, max_queue_s float8)
    ON CONFLICT (owner_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
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


def new_array(connection: Connection, *, owner: int, name: str, size: int) -> int:
    """Insert an array of `size` jobs and return its id."""
    statement = text(
        "INSERT INTO arrays (owner_id, name, size) VALUES (:owner, :name, :size) RETURNING id"
    )
    found = connection.scalar(statement, {"owner": owner, "name": name, "size": size})
    return int(found)


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
    A job whose idempotency key its owner has used gives the first job's id.
    """
    spec_ids = _take_ids(connection, "job_specs", len(specs))
    job_ids = _take_ids(connection, "jobs", len(jobs))
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
    """Return the columns of a row; `dataclasses.asdict` would copy each value, slowly."""
    return {name: getattr(row, name) for name in row.__slots__}
