"""The invariants of docs/design, checked in SQL: each query returns the rows that break it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

DEPENDENCIES = {
    "7: a job counts its open dependencies": """
        SELECT j.id, j.unmet FROM jobs j WHERE j.unmet <> (
          SELECT count(*) FROM dependencies d WHERE d.job_id = j.id AND NOT d.met)""",
    "7: nothing waits for what is decided": """
        SELECT d.id, d.job_id FROM dependencies d JOIN jobs j ON j.id = d.job_id
        LEFT JOIN jobs p ON p.id = d.parent_id LEFT JOIN arrays a ON a.id = d.parent_array_id
        WHERE NOT d.met AND j.state = 'NEW' AND (p.state = 'TERMINATED' OR remuda_verdict(
          d.condition, d.quantifier, a.size, a.ended, a.succeeded) IS NOT NULL)""",
    "7: what a job waited for was met before it was placed": """
        SELECT id FROM jobs WHERE unmet > 0 AND state <> 'NEW'
          AND NOT (state = 'TERMINATED' AND epoch = 0)""",
    "7: arrays count what their jobs are": """
        SELECT a.id, a.size, a.ended, a.succeeded FROM arrays a
        WHERE (a.size, a.ended, a.succeeded) <> (
          SELECT count(*)::int, (count(*) FILTER (WHERE state = 'TERMINATED'))::int,
                 (count(*) FILTER (WHERE reason = 'OK'))::int
          FROM jobs WHERE array_id = a.id)""",
}

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
    # As slots: what overlaps in time on one VM never holds more than it has.
    "3: GPUs are never oversubscribed": """
        WITH edge AS (
          SELECT vm_id, started_at + interval '50 ms' AS at, gpus FROM attempts
          WHERE gpus > 0 AND ended_at - interval '50 ms' > started_at + interval '50 ms'
          UNION ALL
          SELECT vm_id, ended_at - interval '50 ms', -gpus FROM attempts
          WHERE gpus > 0 AND ended_at - interval '50 ms' > started_at + interval '50 ms'
        ), level AS (
          SELECT vm_id, at, sum(gpus) OVER (PARTITION BY vm_id ORDER BY at, gpus) AS used FROM edge
        )
        SELECT l.* FROM level l JOIN vms v ON v.id = l.vm_id WHERE l.used > v.gpus""",
    "3: a VM that isolates serves one owner (and sandbox), of a single use one job": """
        WITH served AS (
          SELECT a.vm_id, j.owner_id, j.sandbox, 'job ' || j.id AS what FROM attempts a
          JOIN jobs j ON j.id = a.job_id
          UNION ALL
          SELECT vm_id, owner_id, sandbox, 'lease ' || id FROM leases WHERE NOT for_jobs
        )
        SELECT v.id FROM served s JOIN vms v ON v.id = s.vm_id JOIN pools p ON p.id = v.pool_id
        WHERE p.isolation <> 'shared' GROUP BY v.id, p.isolation, v.bound_owner_id
        HAVING count(DISTINCT s.owner_id) > 1
          OR p.isolation <> 'owner' AND count(DISTINCT s.sandbox) > 1
          OR p.isolation = 'single_use' AND count(DISTINCT s.what) > 1
          OR min(s.owner_id) IS DISTINCT FROM v.bound_owner_id""",
    "3: no lease outlives its attempts": """
        SELECT l.id FROM leases l WHERE l.for_jobs AND l.released_at IS NULL AND NOT EXISTS (
          SELECT FROM attempts a WHERE a.lease_id = l.id AND a.state IN ('PLACED','STARTED','EXITED'))""",
    "5: only VMs of flex pools are preempted, only their work is": """
        SELECT v.id, a.id AS attempt FROM vms v JOIN pools p ON p.id = v.pool_id
        LEFT JOIN attempts a ON a.vm_id = v.id AND a.reason = 'PREEMPTED'
        WHERE v.preempted_for IS NOT NULL AND p.scheduling_type <> 'flex'
          OR a.id IS NOT NULL AND v.preempted_for IS NULL""",
    "5: preempted jobs have not failed and are not lost": """
        SELECT j.id FROM jobs j WHERE j.reason = 'PREEMPTED' OR j.failures + j.losses > (
          SELECT count(*) FROM attempts a WHERE a.job_id = j.id AND coalesce(a.reason, '') NOT IN (
            'OK', 'PREEMPTED'))""",
    "5: reserved hosts serve pools of their group": """
        SELECT v.id FROM vms v JOIN pools p ON p.id = v.pool_id
        JOIN pools q ON q.provider = 'static'
        CROSS JOIN LATERAL jsonb_array_elements(q.settings -> 'hosts') AS h
        WHERE p.provider = 'static' AND q.state NOT IN ('CLOSED', 'PENDING_DELETE')
          AND v.state <> 'HALTED' AND h ->> 'address' = v.address ->> 'address'
          AND coalesce(h ->> 'port', '22') = coalesce(v.address ->> 'port', '22')
          AND coalesce(h ->> 'group', '') <> coalesce(p.reserved_group, '')""",
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
    **DEPENDENCIES,
}


def broken(query: Callable[[str], list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Return the invariants that do not hold, with the rows that show it."""
    found = {name: query(statement) for name, statement in INVARIANTS.items()}
    return {name: rows[:5] for name, rows in found.items() if rows}
