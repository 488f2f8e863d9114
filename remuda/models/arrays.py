"""Arrays as wholes: how far they are, their limit, once more what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import Refused, UnknownArray
from remuda.models.database import rows
from remuda.models.states import PoolState

# Ends are counted as they happen; only what is alive is counted here.
_PROGRESS = """
    SELECT a.id, a.name, o.name AS owner, a.size, a.max_running, a.created_at, a.mean_wall_s,
           coalesce(l.blocked, 0) AS blocked, coalesce(l.queued, 0) AS queued,
           coalesce(l.running, 0) AS running, a.succeeded, a.ended - a.succeeded AS failed, a.ended
    FROM arrays a JOIN owners o ON o.id = a.owner_id LEFT JOIN (
      SELECT array_id, count(*) FILTER (WHERE state = 'NEW' AND unmet > 0) AS blocked,
             count(*) FILTER (WHERE state IN ('NEW', 'SUBMITTED') AND unmet = 0) AS queued,
             count(*) FILTER (WHERE state NOT IN ('NEW', 'SUBMITTED')) AS running
      FROM jobs WHERE state <> 'TERMINATED' AND array_id IS NOT NULL {of} GROUP BY 1
    ) AS l ON l.array_id = a.id
"""

_AGAIN = text("""
    WITH failed AS (
      SELECT * FROM jobs WHERE array_id = :array AND state = 'TERMINATED' AND reason <> 'OK'
        AND (CAST(:indices AS int[]) IS NULL OR array_index = ANY(:indices))
    ), made AS (
      INSERT INTO arrays (owner_id, name, size, max_running, mean_wall_s)
      SELECT owner_id, name, (SELECT count(*) FROM failed), max_running, mean_wall_s
      FROM arrays WHERE id = :array AND EXISTS (SELECT FROM failed) RETURNING id, size
    )
    INSERT INTO jobs (pool_id, pool_ids, owner_id, spec_id, array_id, array_index, params, name,
                      cores, memory_bytes, walltime_s, priority, max_attempts, follow, retry, gpus,
                      architecture, constraints, sandbox, tags, pin_cpus, max_queue_s, queue_id)
    SELECT coalesce(:pool, f.pool_id), CASE WHEN CAST(:pool AS bigint) IS NULL THEN f.pool_ids END,
           f.owner_id, f.spec_id, made.id, f.array_index, f.params, f.name, f.cores,
           f.memory_bytes, f.walltime_s, f.priority, f.max_attempts, f.follow, f.retry, f.gpus,
           f.architecture, f.constraints, f.sandbox, f.tags, f.pin_cpus, f.max_queue_s,
           CASE WHEN made.size >= 100 THEN made.id END
    FROM failed f CROSS JOIN made ORDER BY f.id
    RETURNING array_id
""")


def progress(connection: Connection, array_id: int) -> dict[str, Any]:
    """Return how far an array is, by one query; raises UnknownArray.

    Of its `size` jobs some are blocked (by dependencies), queued, running, succeeded or failed;
    `ended` is the last two.
    """
    of = _PROGRESS.format(of="AND array_id = :id") + " WHERE a.id = :id"
    found = rows(connection, of, id=array_id)
    if not found:
        raise UnknownArray(f"there is no array {array_id}", hint="`remuda array list` shows them")
    return _with_eta(found[0])


def exists(connection: Connection, array_id: int) -> bool:
    """Return whether there is such an array."""
    return bool(rows(connection, "SELECT FROM arrays WHERE id = :id", id=array_id))


def listing(
    connection: Connection, *, owner: str | None = None, live: bool = False, limit: int = 100
) -> list[dict[str, Any]]:
    """Return the newest arrays, oldest first; only those with live jobs if `live`."""
    found = rows(
        connection,
        f"""SELECT * FROM ({_PROGRESS.format(of="")}
              WHERE (CAST(:owner AS text) IS NULL OR o.name = :owner)
                AND (NOT CAST(:live AS boolean) OR a.ended < a.size)
              ORDER BY a.id DESC LIMIT :limit) AS newest ORDER BY id""",
        owner=owner,
        live=live,
        limit=limit,
    )
    return [_with_eta(row) for row in found]


def _with_eta(row: Mapping[str, Any]) -> dict[str, Any]:
    """Add what its jobs' times say of when it will be done: None while nothing runs."""
    eta = None
    if row["running"] and row["mean_wall_s"] is not None:
        eta = (row["size"] - row["ended"]) * row["mean_wall_s"] / row["running"]
    return {**row, "eta_s": eta}


def set_limit(connection: Connection, array_id: int, most: int | None) -> None:
    """Let at most `most` of the array's jobs (None: any number) be on machines at once.

    Those that are there already stay. Raises UnknownArray.
    """
    changed = connection.execute(
        text("UPDATE arrays SET max_running = :most WHERE id = :id"),
        {"id": array_id, "most": most},
    )
    if not changed.rowcount:
        raise UnknownArray(f"there is no array {array_id}")
    connection.execute(text("SELECT pg_notify('remuda_wake', 'dispatch')"))


def submit_failed_again(
    connection: Connection,
    array_id: int,
    *,
    pool_id: int | None = None,
    indices: Sequence[int] | None = None,
) -> int:
    """Insert a new array of the jobs that ended other than OK, waiting for nothing; return its id.

    They share the old ones' specs, indices and parameters, and go to their pools unless `pool_id`
    says another. Raises UnknownArray, Refused when none failed or a pool has ended.
    """
    now = progress(connection, array_id)
    if not now["failed"]:
        left = (
            f", {now['size'] - now['ended']} have not ended yet"
            if now["ended"] < now["size"]
            else ""
        )
        raise Refused(f"no job of array {array_id} has failed{left}")
    closed = rows(
        connection,
        """SELECT p.name, p.state FROM pools p WHERE p.state = ANY(:ended) AND (p.id = :pool
             OR CAST(:pool AS bigint) IS NULL AND p.id IN (
               SELECT pool_id FROM jobs WHERE array_id = :id AND reason <> 'OK'))""",
        ended=[str(s) for s in (PoolState.CLOSING, PoolState.CLOSED, PoolState.PENDING_DELETE)],
        pool=pool_id,
        id=array_id,
    )
    if closed:
        raise Refused(f"pool {closed[0]['name']} is {closed[0]['state']}", hint="give another pool")
    made = connection.scalars(
        _AGAIN,
        {
            "array": array_id,
            "pool": pool_id,
            "indices": list(indices) if indices is not None else None,
        },
    ).first()
    if made is None:
        raise Refused(f"none of these jobs of array {array_id} has failed")
    return int(made)
