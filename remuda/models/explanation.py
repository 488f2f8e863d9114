"""What tells why a job is where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from remuda.constraints import hardware_of, unmet
from remuda.models import budgets, prospects
from remuda.models.array_limits import array_rooms
from remuda.models.budgets import STOP
from remuda.models.database import rows
from remuda.models.demand import PoolLimits, limits_of
from remuda.models.query import job, pools

_MOST = 10  # of anything that is told one by one

_PARENTS = f"""
    SELECT d.parent_id, d.parent_array_id, d.condition, d.quantifier, j.name, j.state, a.ended, a.size
    FROM dependencies d LEFT JOIN jobs j ON j.id = d.parent_id
    LEFT JOIN arrays a ON a.id = d.parent_array_id
    WHERE d.job_id = :id AND NOT d.met ORDER BY d.id LIMIT {_MOST}
"""

_ITSELF = """
    SELECT (SELECT extract(epoch FROM not_before - now())::float8 WHERE not_before > now()) AS waits_s,
           CASE WHEN max_queue_s IS NOT NULL AND unmet = 0 AND NOT EXISTS (
             SELECT FROM attempts WHERE job_id = jobs.id AND started_at IS NOT NULL)
           THEN extract(epoch FROM greatest(submitted_at,
             (SELECT max(p.ended_at) FROM dependencies d JOIN jobs p ON p.id = d.parent_id
              WHERE d.job_id = jobs.id),
             (SELECT max(p.ended_at) FROM dependencies d JOIN jobs p ON p.array_id = d.parent_array_id
              WHERE d.job_id = jobs.id)) - now())::float8 + max_queue_s END AS deadline_s
    FROM jobs WHERE id = :id
"""

_PREEMPTED = """
    SELECT count(*) AS count, max(ended_at) AS at, (array_agg(message ORDER BY id DESC))[1] AS why
    FROM attempts WHERE job_id = :id AND reason = 'PREEMPTED'
"""

_PAUSED = text("""
    SELECT extract(epoch FROM paused_until - now())::float8 FROM pools
    WHERE id = :pool AND paused_until > now()
""")

_VMS = """
    SELECT v.name, v.architecture, v.slots, v.memory_bytes, v.gpus, v.facts,
           p.isolation <> 'shared' AND v.bound_owner_id IS NOT NULL AND NOT (
             v.bound_owner_id = :owner AND (p.isolation = 'owner'
               OR p.isolation = 'sandbox' AND v.bound_sandbox = :sandbox)) AS is_foreign,
           v.slots - coalesce(a.cores, 0) - (
             SELECT coalesce(sum(slots), 0) FROM leases
             WHERE vm_id = v.id AND NOT for_jobs AND released_at IS NULL)::int AS free_slots,
           v.gpus - coalesce(a.gpus, 0) AS free_gpus,
           EXISTS (SELECT FROM lease_requests q WHERE q.vm_id = v.id AND q.lease_id IS NULL
                     AND NOT q.refused AND q.expires_at > now()) AS is_kept
    FROM vms v JOIN pools p ON p.id = v.pool_id LEFT JOIN LATERAL (
      SELECT sum(cores)::int AS cores, sum(gpus)::int AS gpus FROM attempts
      WHERE vm_id = v.id AND state IN ('PLACED', 'STARTED')) a ON true
    WHERE v.pool_id = :pool AND v.state = 'RUNNING' AND NOT v.draining ORDER BY v.id
"""


def explain_facts(
    connection: Connection, job_id: int, *, half_life_s: float = 86400.0
) -> dict[str, Any]:
    """Return what tells why a job is where it is: itself, what it waits for, the pools it may go to.

    `half_life_s`: of owners' use.
    """
    found = dict(job(connection, job_id))
    itself = rows(connection, _ITSELF, id=job_id)[0]
    ids = found["pool_ids"] or [found["pool_id"]]
    by_id = {row["id"]: row for row in pools(connection, ids=ids)}
    limits = limits_of(connection, ids)
    stops = budgets.stopped(connection, list(ids))
    return {
        "job": found,
        "pool": dict(by_id[found["pool_id"]]),
        "pools": [
            {
                **_pool(connection, found, by_id[i], limits[i]),
                "owner_stop": stops.get((found["owner_id"], i)),
                "line": prospects.before(connection, found, i, half_life_s=half_life_s),
            }
            for i in ids
            if i in by_id
        ],
        "quotas": prospects.full_quotas(connection, found, list(ids)),
        "vm_limits": prospects.full_vm_limits(connection, found["owner_id"], list(ids)),
        "parents": [dict(row) for row in rows(connection, _PARENTS, id=job_id)],
        "array": _array(connection, found["array_id"]),
        "budget_stop": rows(
            connection,
            f"SELECT {STOP} AS budget_stop FROM owners o WHERE o.id = :id",
            id=found["owner_id"],
        )[0]["budget_stop"],
        "preempted": rows(connection, _PREEMPTED, id=job_id)[0],
        "waits_s": itself["waits_s"],
        "deadline_s": itself["deadline_s"],
    }


def _array(connection: Connection, array_id: int | None) -> dict[str, int] | None:
    """Return the limit of an array and how many of its jobs are on machines; None: no limit."""
    found = rows(
        connection,
        "SELECT max_running FROM arrays WHERE id = :id AND max_running IS NOT NULL",
        id=array_id,
    )
    if array_id is None or not found:
        return None
    most = found[0]["max_running"]
    return {"max_running": most, "live": most - array_rooms(connection, {array_id: most})[array_id]}


def _pool(
    connection: Connection, found: Mapping[str, Any], pool: Mapping[str, Any], limits: PoolLimits
) -> dict[str, Any]:
    vms = rows(connection, _VMS, pool=pool["id"], owner=found["owner_id"], sandbox=found["sandbox"])
    mine = [vm for vm in vms if not vm["is_foreign"]]
    open_to_it = [vm for vm in mine if not vm["is_kept"]]
    lacks = [
        (vm["name"], why)
        for vm in mine
        if (
            why := unmet(
                hardware_of(vm),
                architecture=found["architecture"],
                constraints=found["constraints"],
            )
        )
    ]
    by_state = rows(
        connection,
        """SELECT state, count(*) AS count FROM vms WHERE pool_id = :pool AND state <> 'HALTED'
           GROUP BY state""",
        pool=pool["id"],
    )
    paused_s = connection.scalar(_PAUSED, {"pool": pool["id"]})
    return {
        "pool": dict(pool),
        "kinds": limits.kinds,
        "vms": {row["state"]: row["count"] for row in by_state},
        "foreign": len(vms) - len(mine),
        "kept": len(mine) - len(open_to_it),
        "lacks": lacks[:_MOST],
        "most_free_slots": max((vm["free_slots"] for vm in open_to_it), default=0),
        "most_free_gpus": max((vm["free_gpus"] for vm in open_to_it), default=0),
        "paused_s": paused_s,
    }
