"""What a runner must be told to start: the PLACED attempts of a VM, and the fence's floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows
from remuda.models.exits import release_idle_leases
from remuda.models.rooms import TAKES_LONG, UNLIMITED

_TO_START = """
    SELECT a.id AS attempt_id, a.job_id, a.epoch, a.cores, a.memory_bytes, a.gpus, j.walltime_s,
           j.follow, j.array_index, j.params, j.owner_id, j.pin_cpus, s.command, s.environment,
           s.inputs, s.outputs, s.workdir, s.prologue, s.epilogue, s.join_output,
           s.output_limit_bytes, p.constants, p.id AS pool_id,
           p.name AS pool_name,
           p.secrets <> '{}' AND p.owner_id = j.owner_id AS gets_secrets,
           coalesce(s.wait_for_resources, p.wait_for_resources)
             AND v.resources_version < p.resources_version AS lacks_resources
    FROM attempts a JOIN jobs j ON j.id = a.job_id JOIN job_specs s ON s.id = j.spec_id
    JOIN pools p ON p.id = j.pool_id JOIN vms v ON v.id = a.vm_id
    WHERE a.vm_id = :vm AND a.state = 'PLACED' AND (CAST(:ids AS bigint[]) IS NULL OR a.id = ANY(:ids))
      AND a.placed_at <= now() - make_interval(secs => :age)
    ORDER BY a.id
"""


def to_start(
    connection: Connection,
    vm_id: int,
    *,
    attempt_ids: Sequence[int] | None = None,
    older_than_s: float = 0.0,
) -> list[dict[str, Any]]:
    """Return the PLACED attempts of the VM (all, or of those ids), oldest first."""
    ids = list(attempt_ids) if attempt_ids is not None else None
    found = rows(connection, _TO_START, vm=vm_id, ids=ids, age=older_than_s)
    return [dict(row) for row in found]


def floor(connection: Connection, vm_id: int) -> int:
    """Return the smallest id an attempt that may still start on the VM can have."""
    found = connection.scalar(
        text(
            """SELECT coalesce((SELECT min(id) FROM attempts WHERE vm_id = :vm
                 AND state IN ('PLACED', 'STARTED', 'EXITED')),
               (SELECT coalesce(max(id), 0) + 1 FROM attempts WHERE vm_id = :vm))"""
        ),
        {"vm": vm_id},
    )
    return int(found)


def stuck(connection: Connection, vm_id: int, *, horizon_s: float) -> list[int]:
    """Return the PLACED attempts of a VM that have no room there and will not have it soon.

    They were placed ahead, behind what now turns out to take long, or was suspended.
    """
    statement = text(f"""
        WITH vm AS (
          SELECT slots, coalesce(memory_bytes, {UNLIMITED}) AS memory FROM vms WHERE id = :vm
        ), live AS (
          SELECT id, state, cores, coalesce(memory_bytes, 0) AS memory, {TAKES_LONG} AS long
          FROM attempts WHERE vm_id = :vm AND state IN ('PLACED', 'STARTED')
        ), queue AS (
          SELECT id, state, cores, memory, sum(cores) OVER upto AS slots_upto,
                 sum(memory) OVER upto AS memory_upto
          FROM live WINDOW upto AS (ORDER BY state = 'PLACED', id)
        ), waiting AS (
          SELECT id, max(q.cores) OVER () AS cores, max(q.memory) OVER () AS memory FROM queue q, vm
          WHERE state = 'PLACED' AND (slots_upto > vm.slots OR memory_upto > vm.memory)
        ), kept AS (
          SELECT coalesce(sum(cores), 0) AS cores, coalesce(sum(memory), 0) AS memory
          FROM live WHERE long
        )
        SELECT w.id FROM waiting w, vm, kept
        WHERE w.cores > vm.slots - kept.cores OR w.memory > vm.memory - kept.memory
        ORDER BY w.id""")
    return list(connection.scalars(statement, {"vm": vm_id, "horizon": horizon_s}))


def take_back(connection: Connection, vm_id: int, attempt_ids: Sequence[int]) -> list[int]:
    """Recall attempts that never started: CANCELLED, their jobs NEW again; return those ids.

    The runner must have forgotten them, for good, before. The VM's row must be locked.
    """
    statement = text("""
        WITH a AS (
          UPDATE attempts SET state = 'CANCELLED', reason = 'CANCELLED', message = 'recalled',
                 ended_at = now()
          WHERE vm_id = :vm AND id = ANY(:ids) AND state = 'PLACED' RETURNING id, job_id, epoch
        ), j AS (
          UPDATE jobs SET state = 'NEW' FROM a
          WHERE jobs.id = a.job_id AND jobs.epoch = a.epoch AND jobs.state = 'SUBMITTED'
        ) SELECT id FROM a""")
    taken = list(connection.scalars(statement, {"vm": vm_id, "ids": list(attempt_ids)}))
    if taken:
        release_idle_leases(connection, vm_id)
    return taken


def next_retry_s(connection: Connection) -> float | None:
    """Return in how many seconds the next job that pauses may be tried again; None: no job pauses."""
    found = connection.scalar(
        text(
            """SELECT extract(epoch FROM min(not_before) - now())::float8 FROM jobs
               WHERE state = 'NEW' AND not_before > now()"""
        )
    )
    return None if found is None else float(found)
