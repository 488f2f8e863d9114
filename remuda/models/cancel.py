"""Cancel and follow jobs: what a user asks of jobs that may already be on a machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows
from remuda.models.selecting import like

# The locks come first, and what they wait for is seen: a job that ends meanwhile is left alone.
# The state is asked for there alone: where statistics say that all have ended, asking again has the
# planner compare each job with each locked one.
_CANCEL = """
    WITH locked AS (
      SELECT id FROM jobs WHERE state <> 'TERMINATED' AND {where} ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE jobs SET
      cancel_requested_at = coalesce(cancel_requested_at, now()),
      state = CASE WHEN state = 'NEW' THEN 'TERMINATED' ELSE state END,
      reason = CASE WHEN state = 'NEW' THEN 'CANCELLED' END,
      ended_at = CASE WHEN state = 'NEW' THEN now() END
    WHERE id IN (SELECT id FROM locked) RETURNING id
"""


def request_cancel(connection: Connection, job_ids: Sequence[int]) -> list[int]:
    """Cancel waiting jobs at once and ask the workers to kill the others.

    Returns the jobs it concerned; those that had ended are left as they are.
    """
    statement = text(_CANCEL.format(where="id = ANY(:ids)"))
    return list(connection.scalars(statement, {"ids": list(job_ids)}))


def cancel_matching(
    connection: Connection,
    *,
    ids: Sequence[int] | None = None,
    pool_id: int | None = None,
    array_id: int | None = None,
    indices: Sequence[int] | None = None,
    states: Sequence[str] | None = None,
    name: str | None = None,
    tag: str | None = None,
    owner: str | None = None,
) -> list[int]:
    """Cancel all jobs that meet every filter given, by one statement, as `request_cancel` does.

    `indices`: of the array's jobs. `name` may hold `*` for any text.
    """
    where, values = matching(
        ids=ids,
        pool_id=pool_id,
        array_id=array_id,
        indices=indices,
        states=states,
        name=name,
        tag=tag,
        owner=owner,
    )
    return list(connection.scalars(text(_CANCEL.format(where=where)), values))


def count_matching(connection: Connection, **filters: Any) -> int:
    """Return how many jobs `cancel_matching` would concern."""
    where, values = matching(**filters)
    found = connection.scalar(
        text(f"SELECT count(*) FROM jobs WHERE state <> 'TERMINATED' AND {where}"), values
    )
    return int(found or 0)


def matching(**filters: Any) -> tuple[str, dict[str, Any]]:
    """Return the condition of those filters of `cancel_matching` that are given, and its values."""
    clauses = {
        "ids": "id = ANY(:ids)",
        "pool_id": "pool_id = :pool_id",
        "array_id": "array_id = :array_id",
        "indices": "array_index = ANY(:indices)",
        "states": "state = ANY(:states)",
        "name": "name LIKE :name",
        "tag": "tags @> jsonb_build_array(CAST(:tag AS text)) AND tags <> '[]'::jsonb",
        "owner": "owner_id = (SELECT id FROM owners WHERE name = :owner)",
    }
    given = {key: value for key, value in filters.items() if value is not None}
    if "name" in given:
        given["name"] = like(given["name"])
    return " AND ".join(clauses[key] for key in given) or "true", given


def to_cancel(
    connection: Connection, *, job_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return (vm_id, attempt_id, vm_state) of the live attempts whose job is to be cancelled."""
    found = rows(
        connection,
        """SELECT a.vm_id, a.id AS attempt_id, v.state AS vm_state
           FROM jobs j JOIN attempts a ON a.job_id = j.id AND a.epoch = j.epoch
           JOIN vms v ON v.id = a.vm_id
           WHERE j.cancel_requested_at IS NOT NULL AND j.state <> 'TERMINATED'
             AND a.state IN ('PLACED', 'STARTED')
             AND (CAST(:ids AS bigint[]) IS NULL OR j.id = ANY(:ids))
           ORDER BY a.vm_id, a.id""",
        ids=list(job_ids) if job_ids is not None else None,
    )
    return [dict(row) for row in found]


def cancel_requeued(connection: Connection) -> int:
    """End jobs that went back to NEW while their cancellation was under way; return how many."""
    done = connection.execute(
        text(
            """UPDATE jobs SET state = 'TERMINATED', reason = 'CANCELLED', ended_at = now()
               WHERE id IN (SELECT id FROM jobs WHERE cancel_requested_at IS NOT NULL
                              AND state = 'NEW' ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)"""
        )
    )
    return int(done.rowcount)


def cancel_stranded(connection: Connection) -> int:
    """End jobs that came into a pool as it was closed, which nobody looks at any more."""
    done = connection.execute(
        text(
            """UPDATE jobs SET state = 'TERMINATED', reason = 'CANCELLED', ended_at = now(),
                 cancel_requested_at = coalesce(cancel_requested_at, now()),
                 message = 'its pool was closed'
               WHERE id IN (SELECT j.id FROM pools p JOIN jobs j ON j.pool_id = p.id
                            WHERE p.state IN ('CLOSED', 'PENDING_DELETE') AND j.state = 'NEW'
                            ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED)"""
        )
    )
    return int(done.rowcount)


def followed(connection: Connection, vm_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return (vm_id, attempt_id) of the started attempts on these VMs whose output is followed."""
    found = rows(
        connection,
        """SELECT a.vm_id, a.id AS attempt_id FROM attempts a
           JOIN jobs j ON j.id = a.job_id AND j.epoch = a.epoch
           WHERE a.vm_id = ANY(:vms) AND a.state IN ('PLACED', 'STARTED') AND j.follow""",
        vms=list(vm_ids),
    )
    return [dict(row) for row in found]


def insert_chunks(connection: Connection, chunks: Sequence[dict[str, Any]]) -> None:
    """Insert output chunks and wake the followers.

    (attempt_id, stream, at_byte, data; cut_from: where a gap before `at_byte` begins, if one does.)
    """
    connection.execute(
        text(
            """INSERT INTO output_chunks (attempt_id, stream, at_byte, data, cut_from)
               SELECT :attempt_id, :stream, :at_byte, :data, CAST(:cut_from AS bigint)
               FROM attempts WHERE id = :attempt_id
               ON CONFLICT DO NOTHING"""
        ),
        [{"cut_from": None, **chunk} for chunk in chunks],
    )
    for attempt_id in sorted({chunk["attempt_id"] for chunk in chunks}):
        connection.execute(
            text(
                """SELECT pg_notify('remuda_output', job_id::text)
                   FROM attempts WHERE id = :attempt_id"""
            ),
            {"attempt_id": attempt_id},
        )
