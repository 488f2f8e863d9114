"""What a monitor is told of attempts and VMs; reads only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.cancel import request_cancel
from remuda.models.database import rows
from remuda.models.states import LIVE_ATTEMPT

_SHOWN = """
    SELECT a.id AS attempt_id, a.job_id, a.epoch, a.state, a.reason, a.exit_code, a.signal, a.message,
           a.wall_s, extract(epoch FROM a.placed_at)::float8 AS placed_at,
           extract(epoch FROM a.started_at)::float8 AS started_at,
           extract(epoch FROM a.ended_at)::float8 AS ended_at,
           a.vm_id, v.name AS vm, p.name AS pool, o.name AS owner, s.command,
           j.name, j.params, j.array_id, j.array_index,
           -- Whether its job goes on without it.
           j.epoch > a.epoch OR j.state = 'NEW' AS again
    FROM attempts a JOIN jobs j ON j.id = a.job_id JOIN job_specs s ON s.id = j.spec_id
    JOIN owners o ON o.id = j.owner_id JOIN vms v ON v.id = a.vm_id JOIN pools p ON p.id = v.pool_id
    WHERE a.id = ANY(:ids) ORDER BY a.id
"""


def attempts_shown(connection: Connection, attempt_ids: Iterable[int]) -> list[dict[str, Any]]:
    """Return what is shown of these attempts; times in seconds since the epoch."""
    return [dict(row) for row in rows(connection, _SHOWN, ids=list(attempt_ids))]


def live_attempts_on(
    connection: Connection, vm_ids: Iterable[int], *, known: Collection[int], most: int
) -> list[int]:
    """Return the oldest `most` live attempts on these VMs that are not `known`."""
    statement = text("""
        SELECT id FROM attempts WHERE vm_id = ANY(:vms) AND state = ANY(:live)
        ORDER BY id LIMIT :most""")
    values = {"vms": list(vm_ids), "live": sorted(LIVE_ATTEMPT), "most": most + len(known)}
    found = connection.scalars(statement, values)
    return [attempt_id for attempt_id in found if attempt_id not in known][:most]


def ended_attempts(connection: Connection, attempt_ids: Iterable[int]) -> list[int]:
    """Return those of these attempts that are no longer live."""
    statement = text("SELECT id FROM attempts WHERE id = ANY(:ids) AND NOT state = ANY(:live)")
    values = {"ids": list(attempt_ids), "live": sorted(LIVE_ATTEMPT)}
    return list(connection.scalars(statement, values))


def vms_shown(connection: Connection, vm_ids: Iterable[int]) -> Sequence[Mapping[str, Any]]:
    """Return (id, name, pool, heartbeat_s, state, watcher) of these VMs."""
    return rows(
        connection,
        """SELECT v.id, v.name, p.name AS pool, p.heartbeat_s, v.state, v.watcher
           FROM vms v JOIN pools p ON p.id = v.pool_id WHERE v.id = ANY(:ids) ORDER BY v.id""",
        ids=list(vm_ids),
    )


def cancel_shown(
    connection: Connection, *, attempt_ids: Iterable[int] = (), job_ids: Iterable[int] = ()
) -> tuple[list[int], list[int]]:
    """Cancel jobs named by themselves or by an attempt of theirs.

    Returns the jobs there are, and those of them that had not ended before.
    """
    statement = text("""
        SELECT id FROM jobs WHERE id = ANY(:jobs)
        UNION SELECT job_id FROM attempts WHERE id = ANY(:attempts) ORDER BY 1""")
    values = {"jobs": list(job_ids), "attempts": list(attempt_ids)}
    found = list(connection.scalars(statement, values))
    return found, request_cancel(connection, found) if found else []
