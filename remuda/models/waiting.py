"""The waiting jobs that fit somewhere now, locked: the next ones of each pool, past all others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from remuda.constraints import Hardware
from remuda.models.database import rows
from remuda.models.deadlines import MAYBE_OVERDUE, end_overdue


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job to place, its row locked. `pool_ids` None: only `pool_id` may take it."""

    id: int
    pool_id: int
    pool_ids: list[int] | None
    owner_id: int
    array_id: int | None
    priority: int
    displaced: bool
    submitted_at: datetime
    cores: int
    memory_bytes: int
    gpus: int
    architecture: str | None
    constraints: dict[str, Any] | None
    sandbox: str
    expected_wall_s: float | None


@dataclass(frozen=True, slots=True)
class VmRoom:
    """What a VM, its row locked, has to give. `backlog_s`: expected core-seconds not started.

    `ahead_slots`, `ahead_memory_bytes`: what is free or soon will be: jobs are placed ahead of that.
    """

    id: int
    pool_id: int
    slots: int
    memory_bytes: int | None
    used_slots: int
    used_memory_bytes: int
    backlog_s: float
    backlog_count: int
    gpus: int
    used_gpus: int
    hardware: Hardware
    isolation: str
    bound_owner_id: int | None
    bound_sandbox: str | None
    ahead_slots: int
    ahead_memory_bytes: int | None
    ends_after_jobs: bool = False  # it has only so many jobs in its life


UNLIMITED = 2**63 - 1  # the memory of a VM that tells no limit
READY = "j.state = 'NEW' AND j.unmet = 0 AND NOT j.held"

# Of attempts: what will not give back its slots within the horizon, as far as anybody can tell. It is
# known to be long, or it runs for longer than was thought: suspended, say.
TAKES_LONG = """(
    state = 'STARTED' AND (expected_wall_s > :horizon
      OR extract(epoch FROM now() - started_at) > coalesce(expected_wall_s, 0) + :horizon))"""

# The same as remuda.constraints.unmet, for the jobs `j` and the hardware of the room `r`.
CONSTRAINTS_MET = r"""(
    coalesce((j.constraints->>'min_cores')::bigint <= r.cores, NOT j.constraints ? 'min_cores')
    AND coalesce((j.constraints->>'max_cores')::bigint >= r.cores, NOT j.constraints ? 'max_cores')
    AND coalesce((j.constraints->>'min_memory_bytes')::bigint <= r.memory_bytes,
                 NOT j.constraints ? 'min_memory_bytes')
    AND coalesce((j.constraints->>'max_memory_bytes')::bigint >= r.memory_bytes,
                 NOT j.constraints ? 'max_memory_bytes')
    AND coalesce((j.constraints->>'min_memory_per_core_bytes')::bigint <= r.memory_bytes / r.cores,
                 NOT j.constraints ? 'min_memory_per_core_bytes')
    AND coalesce((j.constraints->>'max_memory_per_core_bytes')::bigint >= r.memory_bytes / r.cores,
                 NOT j.constraints ? 'max_memory_per_core_bytes')
    AND coalesce((j.constraints->>'min_disk_bytes')::bigint <= r.disk_bytes,
                 NOT j.constraints ? 'min_disk_bytes')
    AND coalesce((j.constraints->>'gpu')::boolean = r.gpu, NOT j.constraints ? 'gpu')
    AND coalesce((j.constraints->>'ssd')::boolean = r.ssd, NOT j.constraints ? 'ssd')
    AND coalesce(r.cpu_model ILIKE translate(replace(replace(replace(j.constraints->>'cpu_model',
                   '\', '\\'), '%', '\%'), '_', '\_'), '*?', '%_'),
                 NOT j.constraints ? 'cpu_model'))"""

_LOCK_JOBS = f"""
    SELECT j.id, j.pool_id, j.pool_ids, j.owner_id, j.array_id, j.priority, j.submitted_at, j.cores,
           j.displaced,
           coalesce(j.memory_bytes, 0) AS memory_bytes, j.gpus, j.architecture, j.constraints,
           j.sandbox, {MAYBE_OVERDUE} AS late,
           CASE WHEN j.array_id IS NULL THEN o.mean_wall_s ELSE a.mean_wall_s END AS expected_wall_s
    FROM jobs j JOIN owners o ON o.id = j.owner_id LEFT JOIN arrays a ON a.id = j.array_id
    WHERE {READY} AND {{which}} AND o.budget_stop IS NULL
      AND (j.not_before IS NULL OR j.not_before <= now())
      AND (j.array_id IS NULL OR j.array_id <> ALL(:full_arrays))
      -- What fits nowhere now does not count against the limit, or it would hide what does. Not
      -- EXISTS: as a join, with so many conditions, the planner takes it for one that nearly nothing
      -- meets, and sorts all jobs instead of walking the index until it has enough.
      AND coalesce((
        SELECT true FROM jsonb_to_recordset(CAST(:rooms AS jsonb)) AS r(
          pool_id bigint, slots int, memory bigint, gpus int, ahead boolean, owner_id bigint,
          sandbox text, architecture text, cores bigint, memory_bytes bigint, disk_bytes bigint,
          gpu boolean, ssd boolean, cpu_model text)
        WHERE j.cores <= r.slots AND coalesce(j.memory_bytes, 0) <= r.memory AND j.gpus <= r.gpus
          AND {{where}}
          AND (NOT r.ahead OR j.gpus = 0 AND CASE WHEN j.array_id IS NULL THEN o.mean_wall_s
                                                  ELSE a.mean_wall_s END <= :horizon)
          AND (r.owner_id IS NULL
               OR r.owner_id = j.owner_id AND (r.sandbox IS NULL OR r.sandbox = j.sandbox))
          AND (j.architecture IS NULL OR j.architecture = r.architecture)
          AND (j.constraints IS NULL OR {CONSTRAINTS_MET})
        LIMIT 1), false)
    ORDER BY j.priority DESC, j.displaced DESC, j.id LIMIT :most FOR NO KEY UPDATE OF j SKIP LOCKED
"""
LOCK_JOBS_OF_ONE = _LOCK_JOBS.format(
    which="j.pool_ids IS NULL AND j.pool_id = :pool", where="r.pool_id = :pool"
)
LOCK_JOBS_OF_SEVERAL = _LOCK_JOBS.format(
    which="j.pool_ids IS NOT NULL AND j.pool_ids && CAST(:pools AS bigint[])",
    where="r.pool_id = ANY(j.pool_ids)",
)


def lock_jobs(
    connection: Connection,
    statement: str,
    vms: Sequence[VmRoom],
    array_room: Mapping[int, int],
    *,
    max_ahead: int,
    most: int,
    **values: Any,
) -> tuple[list[WaitingJob], bool]:
    """Lock and return the jobs that come next, and whether there may be more of them.

    What is over an array's limit hides no others; what is over its own deadline ends here.
    """
    room = sum(
        max(0, vm.slots - vm.used_slots)
        + (max(0, max_ahead - vm.backlog_count) if vm.ahead_slots else 0)
        for vm in vms
    )
    most = min(room, most)
    rooms = json.dumps(_rooms(vms, max_ahead)) if most else "[]"
    full = {array for array, left in array_room.items() if left <= 0}
    found: dict[int, WaitingJob] = {}
    while most > len(found):
        seen = rows(
            connection, statement, rooms=rooms, full_arrays=sorted(full), most=most, **values
        )
        late = [row["id"] for row in seen if row["late"]]
        if late and end_overdue(connection, late):
            continue
        over: Counter[int] = Counter()
        for row in seen:
            array = row["array_id"]
            if array in array_room:
                over[array] += 1
                if over[array] > array_room[array]:
                    continue
            if row["id"] not in found:
                found[row["id"]] = WaitingJob(**{k: v for k, v in row.items() if k != "late"})
        more = {array for array, count in over.items() if count > array_room[array]}
        if len(seen) < most or not more:
            break
        full |= more  # those of them that may go are found; now for who stands behind the others
    return list(found.values()), bool(most) and len(found) >= most


def _rooms(vms: Sequence[VmRoom], max_ahead: int) -> list[dict[str, Any]]:
    """Return the rooms there are, the largest first: of those alike only that with most memory."""
    most: dict[tuple[Any, ...], int] = {}
    for vm in vms:
        isolated = vm.isolation != "shared"
        if vm.isolation == "single_use" and vm.bound_owner_id is not None:
            continue
        sandbox = vm.bound_sandbox if vm.isolation == "sandbox" else None
        bound = (vm.bound_owner_id, sandbox) if isolated else (None, None)
        rooms = [(vm.slots - vm.used_slots, vm.used_memory_bytes, vm.gpus - vm.used_gpus, False)]
        if vm.backlog_count < max_ahead and (not isolated or bound[0] is not None):
            kept = (vm.memory_bytes or 0) - (vm.ahead_memory_bytes or 0)
            rooms.append((vm.ahead_slots, kept, 0, True))
        for slots, used, gpus, ahead in rooms:
            memory = UNLIMITED if vm.memory_bytes is None else vm.memory_bytes - used
            if slots > 0 and memory >= 0:
                key = (vm.pool_id, slots, max(0, gpus), ahead, *bound, vm.hardware)
                most[key] = max(memory, most.get(key, 0))
    return [
        {
            "pool_id": pool,
            "slots": slots,
            "memory": memory,
            "gpus": gpus,
            "ahead": ahead,
            "owner_id": owner,
            "sandbox": sandbox,
            "architecture": hardware.architecture,
            "cores": hardware.cores,
            "memory_bytes": hardware.memory_bytes,
            "disk_bytes": hardware.disk_bytes,
            "gpu": hardware.gpus > 0,
            "ssd": hardware.ssd,
            "cpu_model": hardware.cpu_model,
        }
        for (pool, slots, gpus, ahead, owner, sandbox, hardware), memory in sorted(
            most.items(), key=lambda item: item[0][1], reverse=True
        )
    ]
