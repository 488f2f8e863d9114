"""Which jobs to look at first: what runs, what comes next, what ended last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from remuda.models import query
from remuda.models.database import rows
from remuda.models.selecting import like

_RECENT = 4000  # transitions looked through for the last ends: bounded, however many jobs there are

# Each part is found by a small partial index, or within the last transitions: never by a scan.
_ON_MACHINES = """
    SELECT a.job_id AS id FROM attempts a JOIN vms v ON v.id = a.vm_id
    WHERE a.state IN ('PLACED', 'STARTED', 'EXITED')
      AND (CAST(:pool AS bigint) IS NULL OR v.pool_id = :pool)
      AND (CAST(:vm AS bigint) IS NULL OR a.vm_id = :vm)
      AND (CAST(:part AS text) IS NULL
           OR EXISTS (SELECT FROM jobs j WHERE j.id = a.job_id AND j.name ILIKE :part))
    ORDER BY a.state = 'PLACED', a.id LIMIT :most
"""
_WAITING = """
    SELECT j.id FROM jobs j
    WHERE j.state = 'NEW' AND j.unmet = 0 AND NOT j.held
      AND (CAST(:pool AS bigint) IS NULL OR j.pool_id = :pool) AND CAST(:vm AS bigint) IS NULL
      AND (CAST(:part AS text) IS NULL OR j.name ILIKE :part)
    ORDER BY - j.priority, NOT j.displaced, j.id LIMIT :most
"""
_ENDED = f"""
    SELECT e.subject_id AS id FROM (SELECT * FROM events ORDER BY id DESC LIMIT {_RECENT}) AS e
    JOIN jobs j ON j.id = e.subject_id
    LEFT JOIN attempts a ON a.job_id = j.id AND a.epoch = j.epoch
    WHERE e.kind = 'job' AND e.to_state = 'TERMINATED'
      AND (CAST(:pool AS bigint) IS NULL OR j.pool_id = :pool)
      AND (CAST(:vm AS bigint) IS NULL OR a.vm_id = :vm)
      AND (CAST(:part AS text) IS NULL OR j.name ILIKE :part)
    ORDER BY e.id DESC LIMIT :most
"""


def jobs_at_a_glance(
    connection: Connection,
    *,
    pool_id: int | None = None,
    vm_id: int | None = None,
    part: str = "",
    limit: int = 100,
) -> list[Mapping[str, Any]]:
    """Return rows of `query.jobs`: those on machines, then the next to be placed, then the last ended.

    Up to `limit` of each, of one pool or VM if given, with `part` in their names. Of the ended only
    those of the last few thousand transitions are found.
    """
    named = like(f"*{part}*") if part else None
    ids: dict[int, None] = {}  # a set that keeps the order
    for statement in (_ON_MACHINES, _WAITING, _ENDED):
        found = rows(connection, statement, pool=pool_id, vm=vm_id, part=named, most=limit)
        ids.update(dict.fromkeys(row["id"] for row in found))
    by_id = {row["id"]: row for row in query.jobs(connection, ids=list(ids), limit=None)}
    return [by_id[job_id] for job_id in ids if job_id in by_id]
