"""The invariants of docs/design, checked in SQL: each query returns the rows that break it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

INVARIANTS = {
    "1: every job reached its one terminal record, with a reason": """
        SELECT id, state, reason FROM jobs WHERE state <> 'TERMINATED' OR reason IS NULL""",
    "1: a terminal record is written once": """
        SELECT subject_id FROM events WHERE kind = 'job' AND to_state = 'TERMINATED'
        GROUP BY 1 HAVING count(*) <> 1""",
    "2: at most one live attempt a job": """
        SELECT job_id FROM attempts WHERE state IN ('PLACED', 'STARTED', 'EXITED')
        GROUP BY 1 HAVING count(*) > 1""",
    "2: epochs grow by one": """
        SELECT j.id FROM jobs j JOIN attempts a ON a.job_id = j.id
        GROUP BY j.id, j.epoch HAVING max(a.epoch) <> j.epoch OR count(*) <> j.epoch""",
    "2: an attempt ends before the next is placed": """
        SELECT a.id FROM attempts a JOIN attempts b ON b.job_id = a.job_id AND b.epoch = a.epoch + 1
        WHERE a.state IN ('PLACED', 'STARTED', 'EXITED')""",
    # Attempts that overlap in time on one VM never hold more than its slots. A tenth of a second is
    # granted: ages travel from the runner to the database's clock.
    "3: slots are never oversubscribed": """
        WITH edge AS (
          SELECT vm_id, started_at + interval '50 ms' AS at, cores FROM attempts
          WHERE started_at IS NOT NULL AND ended_at - interval '50 ms' > started_at + interval '50 ms'
          UNION ALL
          SELECT vm_id, ended_at - interval '50 ms', -cores FROM attempts
          WHERE started_at IS NOT NULL AND ended_at - interval '50 ms' > started_at + interval '50 ms'
        ), level AS (
          SELECT vm_id, at, sum(cores) OVER (PARTITION BY vm_id ORDER BY at, cores) AS used FROM edge
        )
        SELECT l.* FROM level l JOIN vms v ON v.id = l.vm_id WHERE l.used > v.slots""",
    "3: no lease outlives its attempts": """
        SELECT l.id FROM leases l WHERE l.for_jobs AND l.released_at IS NULL AND NOT EXISTS (
          SELECT FROM attempts a WHERE a.lease_id = l.id AND a.state IN ('PLACED','STARTED','EXITED'))""",
    "6: the chain of events is unbroken": """
        SELECT * FROM (
          SELECT kind, subject_id, from_state, to_state,
                 lag(to_state) OVER (PARTITION BY kind, subject_id ORDER BY id) AS before FROM events) e
        WHERE from_state IS DISTINCT FROM before""",
    "6: every step is an edge": """
        SELECT e.* FROM events e WHERE from_state IS NOT NULL AND NOT EXISTS (
          SELECT FROM transitions t WHERE t.kind = e.kind AND t.old = e.from_state
            AND t.new = e.to_state)""",
    "6: the chains end where the rows are": """
        WITH last AS (
          SELECT DISTINCT ON (kind, subject_id) kind, subject_id, to_state FROM events
          ORDER BY kind, subject_id, id DESC
        ), present AS (
          SELECT 'job' AS kind, id, state FROM jobs UNION ALL
          SELECT 'attempt', id, state FROM attempts UNION ALL
          SELECT 'vm', id, state FROM vms UNION ALL SELECT 'pool', id, state FROM pools)
        SELECT p.* FROM present p LEFT JOIN last l ON l.kind = p.kind AND l.subject_id = p.id
        WHERE l.to_state IS DISTINCT FROM p.state""",
}


def broken(query: Callable[[str], list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Return the invariants that do not hold, with the rows that show it."""
    found = {name: query(statement) for name, statement in INVARIANTS.items()}
    return {name: rows[:5] for name, rows in found.items() if rows}
