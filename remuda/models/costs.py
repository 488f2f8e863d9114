"""What VMs, attempts, jobs, owners and pools cost: prices times hours, computed from their rows.

A VM costs the price it was launched at from when it was asked for until it was confirmed gone; an
attempt its share of the slots of its VM while it ran. Both rows stay for good, so nothing is stored
twice. What has no known price is counted as 0, and told apart: `unpriced_hours` of VMs.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from remuda.errors import BadInput
from remuda.models.database import rows

KINDS = ("pool", "owner", "vm", "job", "attempt")

# Hours of [began, ended) within [:since, :until), the present being the end of what goes on.
_HOURS = """greatest(0, extract(epoch FROM
    least(coalesce({ended}, now()), CAST(:until AS timestamptz), now())
    - greatest({began}, CAST(:since AS timestamptz))))::float8 / 3600"""
_VM_HOURS = _HOURS.format(began="v.submitted_at", ended="v.halted_at")
_RUN_HOURS = _HOURS.format(began="a.started_at", ended="a.ended_at")
_LEASE_HOURS = _HOURS.format(began="l.acquired_at", ended="l.released_at")

_PARTS = f"""
    WITH whose AS (
      SELECT id FROM owners WHERE id = :owner OR group_id = :owner
    ), vm AS (
      SELECT v.id, v.name, v.pool_id, v.slots, coalesce(v.price, 0)::float8 AS price, v.state,
             v.price IS NULL AS unpriced, {_VM_HOURS} AS hours
      FROM vms v WHERE v.submitted_at < least(CAST(:until AS timestamptz), now())
        AND (v.halted_at IS NULL OR v.halted_at > CAST(:since AS timestamptz))
        AND (CAST(:pool AS bigint) IS NULL OR v.pool_id = :pool)
    ), run AS (
      SELECT a.id, a.job_id, a.epoch, a.vm_id, j.owner_id, vm.pool_id, a.state,
             {_RUN_HOURS} * a.cores AS slot_hours,
             {_RUN_HOURS} * a.cores / vm.slots * vm.price AS cost
      FROM vm JOIN attempts a ON a.vm_id = vm.id JOIN jobs j ON j.id = a.job_id
      WHERE a.started_at < least(CAST(:until AS timestamptz), now())
        AND (a.ended_at IS NULL OR a.ended_at > CAST(:since AS timestamptz))
        AND (CAST(:owner AS bigint) IS NULL OR j.owner_id IN (SELECT id FROM whose))
    ), lease AS (
      SELECT l.vm_id, l.owner_id, vm.pool_id,
             {_LEASE_HOURS} * l.slots / vm.slots * vm.price AS cost
      FROM vm JOIN leases l ON l.vm_id = vm.id AND NOT l.for_jobs
      WHERE (CAST(:owner AS bigint) IS NULL OR l.owner_id IN (SELECT id FROM whose))
    )"""

_BY = {
    "pool": """
      SELECT p.name AS pool, count(vm.id)::int AS vms, sum(vm.hours) AS vm_hours,
             sum(vm.hours * vm.price) AS cost,
             coalesce(sum(vm.hours) FILTER (WHERE vm.unpriced), 0) AS unpriced_hours,
             coalesce((SELECT sum(cost) FROM run WHERE run.pool_id = p.id), 0) AS jobs_cost,
             coalesce((SELECT sum(cost) FROM lease WHERE lease.pool_id = p.id), 0) AS leases_cost
      FROM vm JOIN pools p ON p.id = vm.pool_id GROUP BY p.id ORDER BY cost DESC, p.id""",
    "owner": """
      SELECT o.name AS owner, sum(part.jobs)::int AS jobs, sum(part.slot_hours) AS slot_hours,
             sum(part.cost) AS cost, sum(part.cost) - sum(part.leased) AS jobs_cost,
             sum(part.leased) AS leases_cost
      FROM (SELECT owner_id, count(DISTINCT job_id) AS jobs, sum(slot_hours) AS slot_hours,
                   sum(cost) AS cost, 0 AS leased FROM run GROUP BY owner_id
            UNION ALL SELECT owner_id, 0, 0, sum(cost), sum(cost) FROM lease GROUP BY owner_id) part
      JOIN owners o ON o.id = part.owner_id GROUP BY o.id ORDER BY cost DESC, o.id""",
    "vm": """
      SELECT vm.id, vm.name AS vm, p.name AS pool, vm.state, vm.slots,
             CASE WHEN NOT vm.unpriced THEN vm.price END AS price, vm.hours AS vm_hours,
             CASE WHEN vm.unpriced THEN vm.hours ELSE 0 END AS unpriced_hours,
             vm.hours * vm.price AS cost,
             coalesce((SELECT sum(cost) FROM run WHERE run.vm_id = vm.id), 0) AS jobs_cost,
             coalesce((SELECT sum(cost) FROM lease WHERE lease.vm_id = vm.id), 0) AS leases_cost
      FROM vm JOIN pools p ON p.id = vm.pool_id ORDER BY cost DESC, vm.id""",
    "job": """
      SELECT j.id, j.name, o.name AS owner, p.name AS pool, j.state, count(*)::int AS attempts,
             sum(run.slot_hours) AS slot_hours, sum(run.cost) AS cost
      FROM run JOIN jobs j ON j.id = run.job_id JOIN owners o ON o.id = j.owner_id
      JOIN pools p ON p.id = j.pool_id GROUP BY j.id, o.id, p.id ORDER BY cost DESC, j.id""",
    "attempt": """
      SELECT run.id, run.job_id AS job, run.epoch, vm.name AS vm, run.state, run.slot_hours, run.cost
      FROM run JOIN vm ON vm.id = run.vm_id ORDER BY run.cost DESC, run.id""",
}


def costs(
    connection: Connection,
    by: str,
    *,
    since: datetime,
    until: datetime,
    pool_id: int | None = None,
    owner_id: int | None = None,
    limit: int = 1000,
) -> list[dict[str, Any]]:
    """Return what each pool, owner, VM, job or attempt cost in a time, the dearest first.

    Of an owner, if given: of a group that is what its members' cost.
    """
    if by not in _BY:
        raise BadInput(f"there are no costs by {by[:50]!r}", hint=f"by {', '.join(KINDS)}")
    found = rows(
        connection,
        f"{_PARTS} {_BY[by]} LIMIT :limit",
        since=since,
        until=until,
        pool=pool_id,
        owner=owner_id,
        limit=limit,
    )
    return [dict(row) for row in found]


def find_owner(connection: Connection, name: str) -> int | None:
    """Return the id of an owner; None: there is none of that name."""
    found = rows(connection, "SELECT id FROM owners WHERE name = :name", name=name)
    return int(found[0]["id"]) if found else None
