"""Read-only questions about jobs, pools and VMs; unknown states and filters are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from remuda.errors import BadInput, InstanceNotFound, UnknownJob, UnknownPool
from remuda.models.database import rows
from remuda.models.dependencies import of_job
from remuda.models.images import OUTDATED
from remuda.models.selecting import Kind, Selection, fields, like, states_of
from remuda.models.states import ImageState, JobState, VmState

_JOB = """
    SELECT j.*, p.name AS pool, o.name AS owner, a.id AS attempt_id, a.vm_id, v.name AS vm,
           a.wall_s, a.user_s, a.system_s, a.max_rss_bytes,
           a.peak_memory_bytes, a.io_read_bytes, a.io_write_bytes
    FROM jobs j JOIN pools p ON p.id = j.pool_id JOIN owners o ON o.id = j.owner_id
    LEFT JOIN attempts a ON a.job_id = j.id AND a.epoch = j.epoch
    LEFT JOIN vms v ON v.id = a.vm_id
"""

_VM_COLUMNS = """
    v.id, v.pool_id, v.image_id, v.name, v.spawn_calls, v.offer, v.price, v.provider_id, v.address,
    v.private_ip, v.public_ip, v.slots, v.memory_bytes, v.architecture, v.gpus, v.facts,
    v.preparation, v.bound_sandbox, v.state, v.draining, v.replaced, v.error, v.checked_at,
    v.check_failures, v.check_error, v.interruption_at, v.preempted_for, v.reboot, v.heartbeat_at,
    v.load, v.cores, v.uptime_s, v.transferred_files, v.transferred_bytes, v.watcher, v.created_at,
    v.submitted_at, v.running_at, v.busy_at, v.state_changed_at, v.halted_at, v.lease_count"""
_VM = f"""
    SELECT {_VM_COLUMNS}, p.name AS pool, coalesce(v.provider, p.provider) AS provider,
           i.name AS image, {OUTDATED} AS outdated, o.name AS owner, l.task_id, l.build_id,
           v.state = 'RUNNING' AND NOT v.draining AND v.check_failures = 0
             AND v.release_due_at IS NULL
             AND (p.backend = 'none'
                  OR v.heartbeat_at > now() - make_interval(secs => p.stalling_interval_s)) AS ready,
           extract(epoch FROM now() - v.heartbeat_at)::float8 AS heartbeat_age_s,
           (SELECT coalesce(sum(cores), 0) FROM attempts a
            WHERE a.vm_id = v.id AND a.state = 'STARTED')::int AS busy_slots,
           (SELECT count(*) FROM attempts a
            WHERE a.vm_id = v.id AND a.state = 'STARTED')::int AS running_jobs,
           (SELECT count(*) FROM attempts a
            WHERE a.vm_id = v.id AND a.state IN ('PLACED', 'STARTED', 'EXITED'))::int AS jobs,
           (SELECT coalesce(sum(slots), 0) FROM leases l WHERE l.vm_id = v.id
              AND NOT l.for_jobs AND l.released_at IS NULL)::int AS leased_slots
    FROM vms v JOIN pools p ON p.id = v.pool_id JOIN images i ON i.id = v.image_id
    LEFT JOIN owners o ON o.id = v.bound_owner_id
    LEFT JOIN LATERAL (
      SELECT task_id, build_id FROM leases WHERE vm_id = v.id AND NOT for_jobs AND released_at IS NULL
      ORDER BY id DESC LIMIT 1) l ON true
"""

_IMAGE = """
    SELECT i.*, (SELECT count(*) FROM vms v WHERE v.image_id = i.id)::int AS vms,
           (SELECT count(*) FROM vms v
            WHERE v.image_id = i.id AND v.state <> 'HALTED')::int AS live_vms
    FROM images i
"""

_POOL = """
    SELECT p.*, i.name AS image, o.name AS owner,
           (SELECT coalesce(jsonb_agg(jsonb_build_object(
                     'offer', r.offer, 'reason', r.reason, 'times', r.times,
                     'expires_at', r.expires_at) ORDER BY r.refused_at, r.offer), '[]')
            FROM offer_refusals r WHERE r.pool_id = p.id AND r.expires_at > now()) AS refusals,
           (SELECT coalesce(jsonb_agg(b.stopped ORDER BY b.id), '[]') FROM budgets b
            WHERE b.pool_id = p.id AND b.stopped IS NOT NULL) AS owner_stops,
           (SELECT count(*) FROM vms WHERE pool_id = p.id AND state <> 'HALTED')::int AS vms,
           (SELECT count(*) FROM vms WHERE pool_id = p.id AND state = 'RUNNING')::int AS running_vms,
           (SELECT coalesce(sum(slots), 0) FROM vms
            WHERE pool_id = p.id AND state = 'RUNNING')::int AS slots,
           (SELECT coalesce(sum(a.cores), 0) FROM attempts a JOIN vms v ON v.id = a.vm_id
            WHERE v.pool_id = p.id AND a.state = 'STARTED')::int AS busy_slots,
           (SELECT count(*) FROM jobs WHERE pool_id = p.id AND state = 'NEW')::int AS waiting_jobs,
           (SELECT count(*) FROM jobs
            WHERE pool_id = p.id AND state NOT IN ('NEW', 'TERMINATED'))::int AS live_jobs
    FROM pools p JOIN images i ON i.id = p.image_id JOIN owners o ON o.id = p.owner_id
"""


VMS = Kind(
    "VMs",
    _VM,
    fields(
        state=VmState,
        text="""name pool provider offer provider_id image architecture private_ip public_ip error
            bound_sandbox watcher owner task_id build_id""",
        whole="""id pool_id image_id slots busy_slots leased_slots running_jobs jobs memory_bytes
            gpus cores transferred_files transferred_bytes spawn_calls lease_count check_failures""",
        real="load uptime_s heartbeat_age_s price",
        time="""created_at submitted_at running_at busy_at state_changed_at halted_at heartbeat_at""",
        flag="draining replaced ready",
    ),
)
IMAGES = Kind(
    "images",
    _IMAGE,
    fields(
        state=ImageState,
        text="name provider message",
        whole="id vms live_vms",
        time="created_at validated_at state_changed_at",
    ),
)
JOBS = Kind(
    "jobs",
    _JOB,
    fields(
        state=JobState,
        text="name pool owner reason message vm sandbox architecture idempotency_key",
        whole="""id pool_id array_id array_index epoch cores memory_bytes gpus priority exit_code
            signal failures losses max_rss_bytes peak_memory_bytes io_read_bytes io_write_bytes
            vm_id attempt_id""",
        real="walltime_s wall_s user_s system_s max_queue_s",
        time="submitted_at started_at ended_at cancel_requested_at not_before",
        flag="held pin_cpus",
    ),
    born="submitted_at",
)
KINDS = {"vms": VMS, "images": IMAGES, "jobs": JOBS}


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
    connection: Connection,
    *,
    ids: Sequence[int] | None = None,
    ended: bool = False,
    tags: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Sequence[Mapping[str, Any]]:
    """Return pools by name with their VMs, slots and jobs; ended ones too if `ended`.

    `tags`, `labels`: those that have all of them.
    """
    where, values = _where(
        {
            "p.id = ANY(:ids)": list(ids) if ids is not None else None,
            "p.state <> ALL(:over)": None
            if ended or ids is not None
            else ["CLOSED", "PENDING_DELETE"],
            "p.tags @> CAST(:tags AS jsonb)": json.dumps(list(tags)) if tags else None,
            "p.labels @> CAST(:labels AS jsonb)": json.dumps(dict(labels)) if labels else None,
        }
    )
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
    pool_id: int | Sequence[int] | None = None,
    states: str | Iterable[str] | None = None,
    halted: bool = False,
    filters: Mapping[str, Any] | None = None,
    older_s: float | None = None,
    newer_s: float | None = None,
    sort: str | Sequence[str] | None = None,
    start: int = 0,
    limit: int | None = None,
) -> Sequence[Mapping[str, Any]]:
    """Return the VMs that meet every filter given; HALTED ones only if `halted` or asked for.

    `filters`: by field of VMS, see `remuda.models.selecting`, as is the rest.
    """
    chosen = some_vms(ids=ids, pool_id=pool_id, states=states, halted=halted, filters=filters)
    chosen.aged(older_s=older_s, newer_s=newer_s)
    return chosen.get(connection, sort=sort, start=start, limit=limit)


def some_vms(
    *,
    ids: Sequence[int] | None = None,
    pool_id: int | Sequence[int] | None = None,
    states: str | Iterable[str] | None = None,
    halted: bool = False,
    filters: Mapping[str, Any] | None = None,
) -> Selection:
    """Return the VMs that meet every filter given, to ask what one likes of them; see `vms`."""
    given = dict(filters or {})
    wanted = states_of(VmState, states)
    if wanted is None and ids is None and not halted and "state" not in given:
        wanted = [str(state) for state in VmState if state is not VmState.HALTED]
    if wanted is not None:
        given["state"] = wanted
    if ids is not None:
        given["id"] = list(ids)
    if pool_id is not None:
        given["pool_id"] = pool_id
    return Selection(VMS).where(given)


def vm(connection: Connection, vm_id: int) -> Mapping[str, Any]:
    """Return one VM; raises InstanceNotFound."""
    found = vms(connection, ids=[vm_id])
    if not found:
        raise InstanceNotFound(f"there is no VM {vm_id}")
    return found[0]


def vm_history(connection: Connection, vm_id: int, *, newest: int = 1000) -> dict[str, Any]:
    """Return all that is known of a VM: itself, image, events, its `newest` heartbeats, oldest first.

    Raises InstanceNotFound.
    """
    found = dict(vm(connection, vm_id))
    [image] = Selection(IMAGES).where({"id": found["image_id"]}).get(connection)
    return {
        "vm": found,
        "image": dict(image),
        "events": events(connection, "vm", vm_id),
        "heartbeats": _dicts(
            connection,
            """SELECT * FROM (SELECT * FROM heartbeats WHERE vm_id = :id
                              ORDER BY at DESC, id DESC LIMIT :newest) AS h ORDER BY at, id""",
            id=vm_id,
            newest=newest,
        ),
    }


def _where(filters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the WHERE clause of the filters that are given, and their `:values`."""
    given = {clause: value for clause, value in filters.items() if value is not None}
    values = {
        re.sub(r"\W.*", "", clause.partition(":")[2]): value for clause, value in given.items()
    }
    return (f"WHERE {' AND '.join(given)}" if given else ""), values


def _dicts(connection: Connection, statement: str, **values: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in rows(connection, statement, **values)]
