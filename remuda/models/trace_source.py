"""What simulations are made of: the jobs a pool has had, and how long its VMs took to start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows

_LATEST_VMS = 50


def ended_jobs(
    connection: Connection, pool_id: int, *, age_s: float, limit: int
) -> Sequence[Mapping[str, Any]]:
    """Return the newest jobs that ran and ended.

    {submitted_at, wall_s, cores, memory_bytes, priority}
    """
    return rows(
        connection,
        """SELECT * FROM (
             SELECT j.submitted_at, greatest(a.wall_s, 0.001) AS wall_s, j.cores,
                    coalesce(j.memory_bytes, 0) AS memory_bytes, j.priority
             FROM jobs j JOIN attempts a ON a.job_id = j.id AND a.epoch = j.epoch
             WHERE j.pool_id = :pool AND j.state = 'TERMINATED' AND a.wall_s IS NOT NULL
               AND j.submitted_at > now() - make_interval(secs => :age)
             ORDER BY j.id DESC LIMIT :limit) AS newest
           ORDER BY submitted_at""",
        pool=pool_id,
        age=age_s,
        limit=limit,
    )


def boot_s(connection: Connection, pool_id: int) -> float | None:
    """Return the median time from SUBMITTED to RUNNING of the pool's latest VMs, in seconds."""
    found = connection.scalar(
        text(
            f"""SELECT percentile_cont(0.5) WITHIN GROUP (
                  ORDER BY extract(epoch FROM running_at - submitted_at))
                FROM (SELECT running_at, submitted_at FROM vms WHERE pool_id = :pool
                        AND running_at IS NOT NULL AND submitted_at IS NOT NULL
                      ORDER BY id DESC LIMIT {_LATEST_VMS}) AS latest"""
        ),
        {"pool": pool_id},
    )
    return None if found is None else max(0.0, float(found))
