"""Read-only questions about jobs, pools and VMs; unknown states and filters are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection

from remuda.errors import BadInput, InstanceNotFound, UnknownJob, UnknownPool
from remuda.models.database import rows
from remuda.models.dependencies import of_job
from remuda.models.states import JobState, VmState

_JOB = """
    SELECT j.*, p.name AS pool, o.name AS owner, a.id AS attempt_id, a.vm_id, v.name AS vm,
           a.wall_s, a.user_s, a.system_s, a.max_rss_bytes,
           a.peak_memory_bytes, a.io_read_bytes, a.io_write_bytes
    FROM jobs j JOIN pools p ON p.id = j.pool_id JOIN owners o ON o.id = j.owner_id
    LEFT JOIN attempts a ON a.job_id = j.id AND a.epoch = j.epoch
    LEFT JOIN vms v ON v.id = a.vm_id
"""

_VM = """
    SELECT v.*, p.name AS pool, p.provider,
           extract(epoch FROM now() - v.heartbeat_at)::float8 AS heartbeat_age_s,
           (SELECT coalesce(sum(cores), 0) FROM attempts a
            WHERE a.vm_id = v.id AND a.state = 'STARTED')::int AS busy_slots,
           (SELECT count(*) FROM attempts a
            WHERE a.vm_id = v.id AND a.state = 'STARTED')::int AS running_jobs,
           (SELECT count(*) FROM attempts a
            WHERE a.vm_id = v.id AND a.state IN ('PLACED', 'STARTED', 'EXITED'))::int AS jobs,
           (SELECT coalesce(sum(slots), 0) FROM leases l WHERE l.vm_id = v.id
              AND NOT l.for_jobs AND l.released_at IS NULL)::int AS leased_slots
    FROM vms v JOIN pools p ON p.id = v.pool_id
"""

_POOL = """
    SELECT p.*, i.name AS image, o.name AS owner,
           (SELECT count(*) FROM vms WHERE pool_id = p.id AND state <> 'HALTED')::int AS vms,
           (SELECT coalesce(sum(slots), 0) FROM vms
            WHERE pool_id = p.id AND state = 'RUNNING')::int AS slots,
           (SELECT coalesce(sum(a.cores), 0) FROM attempts a JOIN vms v ON v.id = a.vm_id
            WHERE v.pool_id = p.id AND a.state = 'STARTED')::int AS busy_slots,
           (SELECT count(*) FROM jobs WHERE pool_id = p.id AND state = 'NEW')::int AS waiting_jobs,
           (SELECT count(*) FROM jobs
            WHERE pool_id = p.id AND state NOT IN ('NEW', 'TERMINATED'))::int AS live_jobs
    FROM pools p JOIN images i ON i.id = p.image_id JOIN owners o ON o.id = p.owner_id
"""


def states_of(kind: type[StrEnum], given: str | Iterable[str] | None) -> list[str] | None:
    """Return the states as a list (None: all); raises BadInput, with those there are."""
    if given is None:
        return None
    names = [given] if isinstance(given, str) else list(given)
    unknown = [str(name)[:50] for name in names if name not in kind.__members__]
    if unknown:
        raise BadInput(
            f"there is no state {', '.join(unknown)}", hint=f"states: {', '.join(kind.__members__)}"
        )
    return [str(name) for name in names]


def jobs(
    connection: Connection,
    *,
    ids: Sequence[int] | None = None,
    pool_id: int | None = None,
    states: str | Iterable[str] | None = None,
    array_id: int | None = None,
    name: str | None = None,
    owner: str | None = None,
    tags: Sequence[str] | None = None,
    limit: int | None = 1000,
) -> Sequence[Mapping[str, Any]]:
    """Return the jobs that meet every filter given, oldest first; of more, the newest `limit`.

    `name` may hold `*` for any text. `tags`: those that have all of them.
    """
    where, values = _where(
        {
            "j.id = ANY(:ids)": list(ids) if ids is not None else None,
            "j.pool_id = :pool": pool_id,
            "j.state = ANY(:states)": states_of(JobState, states),
            "j.array_id = :array": array_id,
            "j.name LIKE :name": None if name is None else like(name),
            "o.name = :owner": owner,
            "j.tags <> '[]' AND j.tags @> CAST(:tags AS jsonb)": json.dumps(list(tags))
            if tags
            else None,
        }
    )
    newest = f"SELECT * FROM ({_JOB} {where} ORDER BY j.id DESC LIMIT :limit) AS j ORDER BY id"
    return rows(connection, newest, limit=limit, **values)


def job(connection: Connection, job_id: int) -> Mapping[str, Any]:
    """Return one job; raises UnknownJob."""
    found = jobs(connection, ids=[job_id])
    if not found:
        raise UnknownJob(f"there is no job {job_id}")
    return found[0]


def job_ids_by_key(connection: Connection, owner: str, keys: Sequence[str]) -> dict[str, int]:
    """Return the jobs of `owner` that were submitted with these idempotency keys."""
    found = rows(
        connection,
        """SELECT j.idempotency_key, j.id FROM jobs j JOIN owners o ON o.id = j.owner_id
           WHERE o.name = :owner AND j.idempotency_key = ANY(:keys)""",
        owner=owner,
        keys=list(keys),
    )
    return {row["idempotency_key"]: row["id"] for row in found}


def job_history(connection: Connection, job_id: int) -> dict[str, Any]:
    """Return all that is known of a job: itself, spec, attempts, outputs (without data), events."""
    return {
        "job": dict(job(connection, job_id)),
        "spec": dict(
            rows(
                connection,
                """SELECT s.* FROM job_specs s JOIN jobs j ON j.spec_id = s.id
                   WHERE j.id = :id""",
                id=job_id,
            )[0]
        ),
        "attempts": _dicts(
            connection,
            """SELECT a.*, v.name AS vm, v.state AS vm_state
               FROM attempts a JOIN vms v ON v.id = a.vm_id
               WHERE a.job_id = :id ORDER BY a.epoch""",
            id=job_id,
        ),
        "dependencies": of_job(connection, job_id),
        "outputs": _dicts(
            connection,
            """SELECT o.attempt_id, o.kind, o.name, o.size, o.url, o.executable FROM attempt_outputs o
               JOIN attempts a ON a.id = o.attempt_id WHERE a.job_id = :id
               ORDER BY o.attempt_id, o.kind, o.name""",
            id=job_id,
        ),
        "events": _dicts(
            connection,
            """SELECT * FROM events WHERE (kind = 'job' AND subject_id = :id) OR (kind = 'attempt'
                 AND subject_id IN (SELECT id FROM attempts WHERE job_id = :id)) ORDER BY id""",
            id=job_id,
        ),
    }


def events(connection: Connection, kind: str, subject_id: int) -> list[dict[str, Any]]:
    """Return the transitions of one job, attempt, vm, image or pool, oldest first."""
    if kind not in ("job", "attempt", "vm", "image", "pool"):
        raise BadInput(f"there are no events of kind {kind[:50]!r}")
    return _dicts(
        connection,
        "SELECT * FROM events WHERE kind = :kind AND subject_id = :id ORDER BY id",
        kind=kind,
        id=subject_id,
    )


def counts(
    connection: Connection, *, pool_id: int | None = None, array_id: int | None = None
) -> dict[str, int]:
    """Return how many jobs are in each state, none left out."""
    where, values = _where({"pool_id = :pool": pool_id, "array_id = :array": array_id})
    found = rows(
        connection, f"SELECT state, count(*) AS count FROM jobs {where} GROUP BY state", **values
    )
    return dict.fromkeys(map(str, JobState), 0) | {r["state"]: r["count"] for r in found}


def reasons(
    connection: Connection, *, pool_id: int | None = None, array_id: int | None = None
) -> dict[str, int]:
    """Return how many ended jobs there are by reason; OK is success."""
    where, values = _where(
        {"state = :state": "TERMINATED", "pool_id = :pool": pool_id, "array_id = :array": array_id}
    )
    found = rows(
        connection, f"SELECT reason, count(*) AS count FROM jobs {where} GROUP BY reason", **values
    )
    return {row["reason"]: row["count"] for row in found}


def pools(
    connection: Connection, *, ids: Sequence[int] | None = None, ended: bool = False
) -> Sequence[Mapping[str, Any]]:
    """Return pools by name with their VMs, slots and jobs; ended ones too if `ended`."""
    where, values = _where({"p.id = ANY(:ids)": list(ids) if ids is not None else None})
    if not ended and ids is None:
        where = "WHERE p.state NOT IN ('CLOSED', 'PENDING_DELETE')"
    return rows(connection, f"{_POOL} {where} ORDER BY p.name, p.id", **values)


def pool_row(connection: Connection, pool_id: int) -> Mapping[str, Any]:
    """Return the bare row of one pool; raises UnknownPool."""
    found = rows(connection, "SELECT * FROM pools WHERE id = :id", id=pool_id)
    if not found:
        raise UnknownPool(f"there is no pool with id {pool_id}")
    return found[0]


def vms(
    connection: Connection,
    *,
    ids: Sequence[int] | None = None,
    pool_id: int | None = None,
    states: str | Iterable[str] | None = None,
    halted: bool = False,
) -> Sequence[Mapping[str, Any]]:
    """Return the VMs that meet every filter given; HALTED ones only if `halted` or asked for."""
    wanted = states_of(VmState, states)
    if wanted is None and ids is None and not halted:
        wanted = [str(state) for state in VmState if state is not VmState.HALTED]
    where, values = _where(
        {
            "v.id = ANY(:ids)": list(ids) if ids is not None else None,
            "v.pool_id = :pool": pool_id,
            "v.state = ANY(:states)": wanted,
        }
    )
    return rows(connection, f"{_VM} {where} ORDER BY v.id", **values)


def vm(connection: Connection, vm_id: int) -> Mapping[str, Any]:
    """Return one VM; raises InstanceNotFound."""
    found = vms(connection, ids=[vm_id])
    if not found:
        raise InstanceNotFound(f"there is no VM {vm_id}")
    return found[0]


def _where(filters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the WHERE clause of the filters that are given, and their `:values`."""
    given = {clause: value for clause, value in filters.items() if value is not None}
    values = {
        re.sub(r"\W.*", "", clause.partition(":")[2]): value for clause, value in given.items()
    }
    return (f"WHERE {' AND '.join(given)}" if given else ""), values


def like(name: str) -> str:
    """Return the pattern of LIKE for a name in which `*` is any text."""
    plain = name.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return plain.replace("*", "%")


def _dicts(connection: Connection, statement: str, **values: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in rows(connection, statement, **values)]
