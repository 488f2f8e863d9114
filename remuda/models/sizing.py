"""What sizing sees and does: a locked pool with its VMs and demand, and the decision's effects."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows
from remuda.models.demand import Shape, demands_of, limits_of
from remuda.models.sql import READY, RETURNS, sql_list
from remuda.models.states import OPEN_POOL, PoolState
from remuda.models.vm_life import close_idle, insert_vms


@dataclass(frozen=True, slots=True)
class PoolDemand:
    """A pool, its row locked, with its VMs (see `_VMS`) and its waiting work, in slots and shapes.

    `memory_bytes`, `gpus`: what a new VM will have, as far as is known.
    """

    now: datetime
    pool: Mapping[str, Any]
    vms: tuple[Mapping[str, Any], ...]
    queued_slots: int
    shapes: tuple[Shape, ...] = ()
    memory_bytes: int | None = None
    gpus: int = 0


# In seconds; NULL: looked at with every sweep.
_RESIZE_PERIOD_S = """CASE WHEN p.policy_name IS NOT NULL THEN p.policy_resize_period_s
                           WHEN p.is_elastic THEN p.elastic_resize_period_s END"""

# Due: its period has passed, another policy rules, it waits for room, or VMs may have ended. The lock
# keeps two beats from sizing one pool.
_DUE = f"""
    SELECT * FROM pools p
    WHERE state IN ({sql_list((*OPEN_POOL, PoolState.FAILURE, PoolState.CLOSING))})
      AND (CAST(:pool AS bigint) IS NULL OR id = :pool)
      AND (last_resize_at IS NULL OR state = 'CLOSING' OR short_slots > 0
           OR policy_changes_at <= now()
           OR coalesce(last_resize_at <= now() - make_interval(secs => {_RESIZE_PERIOD_S}), true))
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
"""

_VMS = f"""
    SELECT v.pool_id, v.id, v.state, v.slots, v.draining, v.replaced, v.reboot, {RETURNS} AS returns,
           least(v.slots, greatest(coalesce(a.cores, 0) + coalesce(l.slots, 0),
                                   (coalesce(a.live, 0) > 0)::int)) AS busy_slots,
           greatest(coalesce(a.cores, 0) - v.slots, 0) AS ahead_slots,
           greatest(v.running_at, v.busy_at) AS idle_since, v.bound_owner_id, v.bound_sandbox,
           v.architecture, v.memory_bytes, v.gpus, v.facts,
           coalesce(a.memory_bytes, 0) AS used_memory_bytes, coalesce(a.gpus, 0) AS used_gpus
    FROM vms v
    LEFT JOIN LATERAL (SELECT sum(cores) FILTER (WHERE state <> 'EXITED')::int AS cores,
                              sum(memory_bytes) FILTER (WHERE state <> 'EXITED')::bigint
                                AS memory_bytes,
                              sum(gpus) FILTER (WHERE state <> 'EXITED')::int AS gpus,
                              count(*) AS live FROM attempts
                       WHERE vm_id = v.id AND state IN ('PLACED', 'STARTED', 'EXITED')) a ON true
    LEFT JOIN LATERAL (SELECT sum(slots)::int AS slots FROM leases
                       WHERE vm_id = v.id AND NOT for_jobs AND released_at IS NULL) l ON true
    WHERE v.pool_id = ANY(:pools) AND v.state <> 'HALTED' ORDER BY v.pool_id, v.id
"""


def due_pools(
    connection: Connection, *, pool_id: int | None = None, full: Collection[int] = ()
) -> list[PoolDemand]:
    """Lock the pools whose resize is due (or just `pool_id`, if due) and return what they need.

    `full`: see `demands_of`. It is a handful of queries, however many pools are due.
    """
    now = connection.scalar(text("SELECT now()"))
    pools = rows(connection, _DUE, pool=pool_id)
    ids = [pool["id"] for pool in pools]
    vms_of: dict[int, list[Mapping[str, Any]]] = {key: [] for key in ids}
    for vm in rows(connection, _VMS, pools=ids) if ids else ():
        vms_of[vm["pool_id"]].append(vm)
    limits = limits_of(connection, ids)
    wanted = demands_of(connection, pools, limits=limits, full=full)
    found = []
    for pool in pools:
        vms = tuple(vms_of[pool["id"]])
        queued, shapes = wanted[pool["id"]]
        ahead = sum(vm["ahead_slots"] for vm in vms)
        fresh = limits[pool["id"]]
        found.append(
            PoolDemand(
                now,
                dict(pool),
                vms,
                queued + ahead,
                tuple(shapes),
                memory_bytes=fresh.memory_bytes,
                gpus=fresh.gpus,
            )
        )
    return found


def next_due_s(connection: Connection) -> float | None:
    """Return in how many seconds an elastic pool with waiting jobs is due; None if none waits."""
    found = connection.scalar(
        text(
            f"""SELECT min(least(
                  extract(epoch FROM p.last_resize_at - now()) + {_RESIZE_PERIOD_S},
                  extract(epoch FROM p.policy_changes_at - now())))
                FROM pools p WHERE {_RESIZE_PERIOD_S} IS NOT NULL AND p.state IN ({sql_list(OPEN_POOL)})
                  AND (EXISTS (SELECT FROM jobs j WHERE j.pool_id = p.id AND {READY})
                       OR EXISTS (SELECT FROM jobs j WHERE j.pool_ids @> ARRAY[p.id]
                                    AND j.pool_ids IS NOT NULL AND {READY}))"""
        )
    )
    return None if found is None else max(0.0, float(found))


def apply_decision(
    connection: Connection,
    demand: PoolDemand,
    *,
    grow_vms: int,
    close_vm_ids: Sequence[int],
    drain_vm_ids: Sequence[int] = (),
    decision: Mapping[str, Any],
    again_soon: bool = False,
    short_slots: int = 0,
) -> tuple[list[int], list[int]]:
    """Insert the new VMs, bring the idle ones to STOPPING, drain others, store the decision.

    Returns (VMs to spawn, VMs to terminate): fewer are closed when one became busy meanwhile.
    `again_soon`: this was only half of it, the pool's period does not begin anew. One that came too
    early for any decision is forgotten. `short_slots`: what the pool's work needs and others keep.
    """
    pool_id = demand.pool["id"]
    born = insert_vms(connection, pool_id, grow_vms) if grow_vms else []
    closed = close_idle(connection, close_vm_ids) if close_vm_ids else []
    if drain_vm_ids:
        connection.execute(
            text("UPDATE vms SET draining = true WHERE id = ANY(:ids) AND NOT draining"),
            {"ids": list(drain_vm_ids)},
        )
    if born:
        connection.execute(
            text(
                """UPDATE vms SET replaced = true WHERE id IN (
                     SELECT id FROM vms WHERE pool_id = :pool AND state = 'STALLED'
                       AND NOT replaced ORDER BY id LIMIT :count)"""
            ),
            {"pool": pool_id, "count": len(born)},
        )
    if demand.pool["short_slots"] != short_slots:
        note_short(connection, pool_id, short_slots)
    if decision.get("step") == "early":
        return born, closed
    connection.execute(
        text(
            """UPDATE pools SET decision = CAST(:decision AS jsonb),
                 last_resize_at = CASE WHEN :soon THEN last_resize_at ELSE now() END
               WHERE id = :pool"""
        ),
        {
            "pool": pool_id,
            "decision": json.dumps(dict(decision), default=str),
            "soon": again_soon,
        },
    )
    return born, closed


def note_short(connection: Connection, pool_id: int, slots: int) -> None:
    """Store how many slots a pool's work needs that only others keep from it."""
    connection.execute(
        text(
            """UPDATE pools SET short_slots = :slots,
                 short_since = CASE WHEN :slots > 0 THEN coalesce(short_since, now()) END
               WHERE id = :pool"""
        ),
        {"pool": pool_id, "slots": slots},
    )


def note_policy(connection: Connection, pool_id: int, columns: Mapping[str, Any]) -> None:
    """Store what the policy says that rules a pool, its row locked, and until when it does."""
    connection.execute(
        text(
            """UPDATE pools SET policy_name = :policy_name,
                 policy_minimum_slots = :policy_minimum_slots,
                 policy_maximum_slots = :policy_maximum_slots,
                 policy_resize_period_s = :policy_resize_period_s,
                 policy_changes_at = :policy_changes_at
               WHERE id = :pool"""
        ),
        {"pool": pool_id, **columns},
    )


def due_vms(connection: Connection, pool_id: int) -> tuple[Mapping[str, Any], ...]:
    """Return the pool's VMs that are not halted, as they are after a decision."""
    return tuple(rows(connection, _VMS, pools=[pool_id]))


def note_launch(connection: Connection, pool_id: int, *, error: str | None) -> None:
    """Count a failed launch, or forget the failures after a good one.

    After each failure the pool pauses twice as long (2 s up to 5 min); from the fifth on it is in
    FAILURE, loudly, until a launch after the pause succeeds.
    """
    if error is None:
        connection.execute(
            text(
                """UPDATE pools SET launch_failures = 0, paused_until = NULL, paused_at = NULL,
                     message = NULL
                   WHERE id = :pool AND (launch_failures > 0 OR paused_until IS NOT NULL)"""
            ),
            {"pool": pool_id},
        )
        return
    fails = f"launch_failures >= 4 AND state IN ({sql_list(OPEN_POOL)})"
    connection.execute(
        text(
            f"""UPDATE pools SET launch_failures = launch_failures + 1, message = :error,
                  paused_at = coalesce(paused_at, now()), paused_until = now() + make_interval(
                    secs => least(300, power(2, least(launch_failures, 10) + 1))),
                  state = CASE WHEN {fails} THEN 'FAILURE' ELSE state END,
                  previous_state_changed_at = CASE WHEN {fails} THEN state_changed_at
                    ELSE previous_state_changed_at END,
                  state_changed_at = CASE WHEN {fails} THEN now() ELSE state_changed_at END
                WHERE id = :pool"""
        ),
        {"pool": pool_id, "error": error[:2000]},
    )


def compute_state(demand: PoolDemand, vms: Sequence[Mapping[str, Any]]) -> PoolState:
    """Return the state that follows from the pool's VMs, as they are now.

    Dispatched: asked of the provider; executing: its runner answers; fully: all VMs it wants.
    """
    state = PoolState(demand.pool["state"])
    if state is PoolState.CLOSING:
        return PoolState.CLOSED if not vms else PoolState.CLOSING
    if state is PoolState.FAILURE:
        paused = demand.pool["paused_until"]
        return PoolState.SUBMITTED if paused is None or paused <= demand.now else state
    asked = [vm for vm in vms if vm["state"] not in ("ERROR", "STOPPING", "STALLED")]
    running = sum(vm["state"] == "RUNNING" for vm in asked)
    dispatched = sum(vm["state"] != "NEW" for vm in asked)
    if running:
        full = running == len(asked)
        return PoolState.FULLY_EXECUTING if full else PoolState.PARTIALLY_EXECUTING
    if dispatched:
        full = dispatched == len(asked)
        return PoolState.FULLY_DISPATCHED if full else PoolState.PARTIALLY_DISPATCHED
    return PoolState.SUBMITTED


def store_state(connection: Connection, demand: PoolDemand, state: PoolState) -> None:
    """Store the computed state if it differs; the pool's row is locked."""
    if state == demand.pool["state"]:
        return
    connection.execute(
        text(
            """UPDATE pools SET state = :state, previous_state_changed_at = state_changed_at,
                 state_changed_at = now(),
                 ended_at = CASE WHEN :state = 'CLOSED' THEN now() ELSE ended_at END
               WHERE id = :pool AND state = :found"""
        ),
        {"pool": demand.pool["id"], "state": state, "found": demand.pool["state"]},
    )
