"""The end of pools: deleted when asked to, by time, or for want of room; what goes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import PoolLimitReached, Refused
from remuda.models.database import rows
from remuda.models.states import PoolState

# A pool in this state has no machines but such as the ledger still looks for.
_DELETE = """
    UPDATE pools SET state = 'PENDING_DELETE', ended_at = coalesce(ended_at, now()),
      deleted_at = CASE WHEN state = 'UNSUBMITTED' THEN now() END, reconcile_began_at = NULL,
      purge_results = :results, purge_resources = :resources,
      previous_state_changed_at = state_changed_at, state_changed_at = now(),
      updated_at = clock_timestamp()
"""


def delete_pool(
    connection: Connection,
    pool_id: int,
    *,
    purge_results: bool = False,
    purge_resources: bool = False,
) -> None:
    """Have an ended (or never submitted) pool removed; raises Refused while it lives.

    It has `deleted_at` when its provider has confirmed that nothing of it is left, and `purged_at`
    when what was to go with it is gone too. Asked again, it may be told to take more with it.
    """
    purge = {"results": purge_results, "resources": purge_resources}
    done = connection.execute(
        text(
            f"""{_DELETE}
               WHERE id = :id AND (state = 'CLOSED' OR state = 'UNSUBMITTED' AND NOT EXISTS (
                 SELECT FROM jobs WHERE pool_id = :id AND state <> 'TERMINATED'))"""
        ),
        {"id": pool_id, **purge},
    )
    if done.rowcount:
        _deleted(connection)
        return
    state = connection.scalar(text("SELECT state FROM pools WHERE id = :id"), {"id": pool_id})
    if state is not None and state != PoolState.PENDING_DELETE:
        has = " with jobs that have not ended" if state == PoolState.UNSUBMITTED else ""
        if state == PoolState.CLOSING:
            raise _not_yet(connection, pool_id)
        raise Refused(f"the pool is {state}{has} and cannot be deleted", hint="close it first")
    if purge_results or purge_resources:
        connection.execute(
            text(
                """UPDATE pools SET purge_results = purge_results OR :results,
                     purge_resources = purge_resources OR :resources, purged_at = NULL
                   WHERE id = :id"""
            ),
            {"id": pool_id, **purge},
        )


def _not_yet(connection: Connection, pool_id: int) -> Refused:
    """Say what a pool that is being closed still waits for."""
    left = connection.execute(
        text(
            """SELECT (SELECT count(*) FROM jobs WHERE pool_id = :id AND state <> 'TERMINATED') AS jobs,
                 (SELECT count(*) FROM leases l JOIN vms v ON v.id = l.vm_id WHERE v.pool_id = :id
                    AND NOT l.for_jobs AND l.released_at IS NULL) AS leases,
                 (SELECT count(*) FROM vms WHERE pool_id = :id AND state <> 'HALTED') AS vms"""
        ),
        {"id": pool_id},
    ).one()
    told = f"jobs: {left.jobs}, leases: {left.leases}, VMs: {left.vms}"
    return Refused(
        f"the pool is still CLOSING and cannot be deleted yet (left of it: {told})",
        hint="wait for them (`remuda pool close NAME --wait`), or end them (`--now`)",
    )


def delete_expired(connection: Connection) -> list[int]:
    """Delete the pools that were closed longer ago than they are to stay; return them."""
    found = connection.scalars(
        text(
            f"""{_DELETE}
               WHERE id IN (SELECT id FROM pools WHERE state = 'CLOSED'
                   AND ended_at + make_interval(secs => completion_ttl_s) <= now()
                 ORDER BY id FOR UPDATE SKIP LOCKED)
               RETURNING id"""
        ),
        {"results": False, "resources": False},
    )
    ids = sorted(found)
    if ids:
        _deleted(connection)
    return ids


def make_room(connection: Connection, owner_id: int) -> None:
    """Make sure that the owner may have one pool more; raises PoolLimitReached.

    The oldest closed pools that allow it (`auto_delete`) are deleted, no more than needed.
    """
    # The lock keeps two who make pools at once from both taking the last place.
    most = connection.scalar(
        text("SELECT max_pools FROM owners WHERE id = :id AND max_pools IS NOT NULL FOR UPDATE"),
        {"id": owner_id},
    )
    if most is None:
        return
    has = int(
        connection.scalar(
            text("SELECT count(*) FROM pools WHERE owner_id = :id AND state <> 'PENDING_DELETE'"),
            {"id": owner_id},
        )
    )
    if has < most:
        return
    gone = connection.execute(
        text(
            f"""{_DELETE}
               WHERE id IN (SELECT id FROM pools
                 WHERE owner_id = :id AND state = 'CLOSED' AND auto_delete
                 ORDER BY ended_at, id LIMIT :more FOR UPDATE)"""
        ),
        {"id": owner_id, "more": has - most + 1, "results": False, "resources": False},
    )
    if has - gone.rowcount >= most:
        raise PoolLimitReached(
            f"maximum number of pools reached: {most}",
            hint="delete one that is closed; `remuda owner set NAME --max-pools N` is an operator's",
        )
    _deleted(connection)


def to_purge(connection: Connection) -> Sequence[Mapping[str, Any]]:
    """Return the pools that are gone but for what was to go with them."""
    return rows(
        connection,
        """SELECT id, uuid::text AS uuid, purge_results, purge_resources FROM pools
           WHERE deleted_at IS NOT NULL AND purged_at IS NULL
             AND (purge_results OR purge_resources) ORDER BY deleted_at, id LIMIT 20""",
    )


def jobs_with_results(connection: Connection, pool_id: int, *, limit: int) -> list[int]:
    """Return the next of the pool's ended jobs of which something is kept."""
    found = rows(
        connection,
        """SELECT j.id FROM jobs j WHERE j.pool_id = :pool AND j.state = 'TERMINATED' AND EXISTS (
             SELECT FROM attempts a JOIN attempt_outputs o ON o.attempt_id = a.id
             WHERE a.job_id = j.id) ORDER BY j.id LIMIT :limit""",
        pool=pool_id,
        limit=limit,
    )
    return [row["id"] for row in found]


def forget_results(connection: Connection, job_ids: Sequence[int]) -> None:
    """Remove what is known of the outputs of jobs."""
    connection.execute(
        text(
            """DELETE FROM attempt_outputs o USING attempts a
               WHERE a.id = o.attempt_id AND a.job_id = ANY(:jobs)"""
        ),
        {"jobs": list(job_ids)},
    )


def note_purged(connection: Connection, pool: Mapping[str, Any]) -> bool:
    """Record that what was to go with a pool is gone; False if more was asked for meanwhile."""
    done = connection.execute(
        text(
            """UPDATE pools SET purged_at = now() WHERE id = :id AND purge_results = :results
                 AND purge_resources = :resources"""
        ),
        {
            "id": pool["id"],
            "results": pool["purge_results"],
            "resources": pool["purge_resources"],
        },
    )
    return bool(done.rowcount)


def _deleted(connection: Connection) -> None:
    """Have the providers of deleted pools asked what is left, and forget what these might spend."""
    connection.execute(
        text(
            """DELETE FROM budgets b USING pools p
               WHERE p.id = b.pool_id AND p.state = 'PENDING_DELETE'"""
        )
    )
    connection.execute(text("SELECT pg_notify('remuda_wake', 'ledger')"))
