"""How long slots were at work and memory was held, of a pool or a job: what energy is estimated from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from remuda.models.database import rows

_GIB = 1 << 30
_SPAN = """greatest(0, extract(epoch FROM
    least(coalesce({ended}, now()), CAST(:until AS timestamptz))
    - greatest({began}, CAST(:since AS timestamptz))))::float8 / 3600"""
_UP = _SPAN.format(began="v.submitted_at", ended="v.halted_at")
_RAN = _SPAN.format(began="a.started_at", ended="a.ended_at")


def of_pool(
    connection: Connection, pool_id: int, *, since: datetime, until: datetime
) -> Mapping[str, float]:
    """Return {on_slot_hours, busy_slot_hours, gib_hours} of a pool's VMs in a time."""
    return rows(
        connection,
        f"""SELECT coalesce(sum({_UP} * v.slots), 0)::float8 AS on_slot_hours,
                   coalesce(sum({_UP} * coalesce(v.memory_bytes, 0)), 0)::float8 / {_GIB} AS gib_hours,
                   coalesce((SELECT sum({_RAN} * a.cores) FROM attempts a JOIN vms w ON w.id = a.vm_id
                     WHERE w.pool_id = :pool AND a.started_at IS NOT NULL), 0)::float8
                     AS busy_slot_hours
            FROM vms v WHERE v.pool_id = :pool AND v.submitted_at IS NOT NULL""",
        pool=pool_id,
        since=since,
        until=until,
    )[0]


def of_job(connection: Connection, job_id: int) -> Mapping[str, float]:
    """Return {busy_slot_hours, gib_hours} of a job's attempts, the memory being what it asked for."""
    hours = "extract(epoch FROM coalesce(a.ended_at, now()) - a.started_at)::float8 / 3600"
    return rows(
        connection,
        f"""SELECT coalesce(sum({hours} * a.cores), 0)::float8 AS busy_slot_hours,
                   coalesce(sum({hours} * coalesce(a.memory_bytes, 0)), 0)::float8 / {_GIB} AS gib_hours
            FROM attempts a WHERE a.job_id = :job AND a.started_at IS NOT NULL""",
        job=job_id,
    )[0]


def datacenter_of_job(connection: Connection, job_id: int) -> str | None:
    """Return where the job's pool stands, as far as that was told."""
    found: list[Any] = [
        row["datacenter"]
        for row in rows(
            connection,
            """SELECT p.datacenter FROM jobs j JOIN pools p ON p.id = j.pool_id WHERE j.id = :job""",
            job=job_id,
        )
    ]
    return found[0] if found else None
