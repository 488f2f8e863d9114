"""Size pools: apply `remuda.workers.scaling` to each pool that is due, and send for the machines."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from remuda.config import Settings
from remuda.constraints import hardware_of
from remuda.errors import BadInput
from remuda.models import launches, sizing_decisions
from remuda.models import sizing as models
from remuda.models.cancel import cancel_requeued, request_cancel
from remuda.models.database import rows
from remuda.models.leases import release_all
from remuda.models.pool_life import leave_pool
from remuda.models.states import PoolState, VmState
from remuda.models.vm_life import close_idle, lock_vms
from remuda.shelves import FLEX
from remuda.tasks import logs, messages, preempting, ruling
from remuda.tasks.runtime import Runtime
from remuda.workers import scaling
from remuda.workers.outlook import outlook
from remuda.workers.packing import Demand
from remuda.workers.placement import binding
from remuda.workers.pool_snapshot import Ceiling, PoolSnapshot, VmSlots

log = logging.getLogger(__name__)

_STAGE = {
    VmState.NEW: "requested",
    VmState.SUBMITTED: "booting",
    VmState.WAIT_SSH_CONTEXT: "booting",
    VmState.CONTEXTUALIZING: "booting",
    VmState.RUNNING: "running",
}


def resize_pools(runtime: Runtime) -> int:
    """Size every pool that is due, and have launches go on whose time has come.

    Returns how many VMs are to come or to go.
    """

    def work(connection: Connection) -> tuple[list[int], list[int]]:
        born: list[int] = []
        closed: list[int] = []
        full = ruling.lock_ceilings(connection, runtime.settings)
        for demand in models.due_pools(connection, full=full):
            try:
                more, less = _size(connection, demand, runtime.settings)
            except BadInput as error:  # one pool's settings must not stop the others'
                log.error("pool %s cannot be sized: %s", demand.pool["name"], error)
                continue
            born += more
            closed += less
        return born, closed

    born, closed = runtime.transact(work)
    born += [vm_id for vm_id in runtime.transact(launches.due_launches) if vm_id not in born]
    messages.spawn_vm(born)
    messages.terminate_vm(closed)
    return len(born) + len(closed) + preempting.make_room(runtime)


def resize_for_waiting_jobs(runtime: Runtime) -> float | None:
    """Size the pools that are due, if jobs wait; return in how many seconds to look again.

    None: no job waits. It spares jobs the wait for the next sweep, not the pool's `resize_period`.
    """
    due_s = runtime.transact(models.next_due_s)
    if due_s is None or due_s > 0:
        return due_s
    resize_pools(runtime)
    return runtime.transact(models.next_due_s)


def _size(
    connection: Connection, demand: models.PoolDemand, settings: Settings
) -> tuple[list[int], list[int]]:
    pool_id = demand.pool["id"]
    born: list[int] = []
    if demand.pool["state"] == PoolState.CLOSING:
        closed = _close(connection, demand)
    else:
        rules = ruling.of_pool(demand.pool, demand.now)
        flex = demand.pool["scheduling_type"] == FLEX
        snapshot = snapshot_of(
            demand,
            rules,
            ruling.ceiling_of(connection, demand.pool, settings),
            shelf_full=not flex and ruling.is_shelf_full(connection, demand.pool),
        )
        decision = scaling.decide(snapshot, demand.now)
        due = scaling.due_at(snapshot)
        ruling.note(connection, demand.pool, rules)
        told = {
            **asdict(decision),
            "at": demand.now.isoformat(),
            "outlook": asdict(outlook(snapshot, decision, demand.now, change=rules.change)),
        }
        sizing_decisions.keep(connection, demand.pool, told)
        born, closed = models.apply_decision(
            connection,
            demand,
            grow_vms=decision.grow_vms,
            close_vm_ids=[
                *decision.close_vm_ids,
                *decision.replace_vm_ids,
                *_drained(demand),
            ],
            drain_vm_ids=decision.drain_vm_ids,
            again_soon=bool(decision.replace_vm_ids) or (due is not None and demand.now < due),
            short_slots=0 if flex else decision.short_vms * snapshot.slots_per_vm,
            decision=told,
        )
        if born or closed:
            log.info(
                "pool %s: %s",
                demand.pool["name"],
                decision.reason,
                extra={"pool_id": pool_id, "grow": born, "close": closed},
            )
    fresh = models.due_vms(connection, pool_id)
    state = models.compute_state(demand, fresh)
    if state != demand.pool["state"]:
        models.store_state(connection, demand, state)
        logs.transition("pool", pool_id, state)
    return born, closed


def _drained(demand: models.PoolDemand) -> list[int]:
    return [
        vm["id"]
        for vm in demand.vms
        if vm["draining"] and vm["state"] == VmState.RUNNING and vm["reboot"] is None
    ]


def _close(connection: Connection, demand: models.PoolDemand) -> list[int]:
    """Take a closing pool further: no new attempts, then no VMs."""
    lock_vms(connection, [vm["id"] for vm in demand.vms])  # before jobs, as recording locks
    if demand.pool["close_now"]:
        release_all(connection, demand.pool["id"])
    leave_pool(connection, demand.pool["id"])
    states = "<> 'TERMINATED'" if demand.pool["close_now"] else "= 'NEW'"
    left = rows(
        connection,
        f"SELECT id FROM jobs WHERE pool_id = :pool AND state {states}",
        pool=demand.pool["id"],
    )
    if left:
        request_cancel(connection, [row["id"] for row in left])
        cancel_requeued(connection)
    return close_idle(connection, [vm["id"] for vm in demand.vms if vm["state"] != "STOPPING"])


def snapshot_of(
    demand: models.PoolDemand,
    rules: ruling.Ruling | None = None,
    ceiling: Ceiling | None = None,
    *,
    shelf_full: bool = False,
) -> PoolSnapshot:
    """Return a pool as `remuda.workers.scaling` sees it; `rules` None: those of its row."""
    pool = demand.pool
    rules = rules or ruling.of_pool(pool, demand.now)
    return PoolSnapshot(
        pool_id=pool["id"],
        state=pool["state"],
        elastic=rules.size,
        instance_count=pool["instance_count"],
        slots_per_vm=pool["slots_per_vm"],
        vms=tuple(
            _slots_of(vm, isolation=pool["isolation"]) for vm in demand.vms if vm["state"] in _STAGE
        ),
        queued_slots=demand.queued_slots,
        last_resize_at=pool["last_resize_at"],
        provider_known=pool["frozen_at"] is None,
        launch_failures=pool["launch_failures"],
        paused_until=pool["paused_until"],
        demands=tuple(
            Demand(
                count=shape.count,
                cores=shape.cores,
                memory_bytes=shape.memory_bytes,
                gpus=shape.gpus,
                architecture=shape.architecture,
                constraints=shape.constraints,
                key=binding(pool["isolation"], shape.owner_id, shape.sandbox),
            )
            for shape in demand.shapes
        ),
        isolation=pool["isolation"],
        memory_bytes_per_vm=demand.memory_bytes,
        gpus_per_vm=demand.gpus,
        policy=rules.name or "",
        policy_changed=rules.is_new,
        ceiling=ceiling,
        stopped=pool["budget_stop"] or "",
        shelf_full=shelf_full,
        short_slots=pool["short_slots"],
    )


def _slots_of(vm: Mapping[str, Any], *, isolation: str) -> VmSlots:
    """Return a VM as sizing counts it; one that restarts on demand is coming, as one that boots.

    While one that is to restart still works, nothing more fits on it.
    """
    busy_slots, returns = vm["busy_slots"], vm["draining"] and vm["returns"]
    known = returns or vm["state"] == VmState.RUNNING
    return VmSlots(
        id=vm["id"],
        state="booting" if returns and not busy_slots else _STAGE[vm["state"]],
        slots=vm["slots"],
        busy_slots=vm["slots"] if returns and busy_slots else busy_slots,
        idle_since=None if returns or busy_slots else vm["idle_since"],
        draining=vm["draining"] and not returns,
        free_memory_bytes=None
        if vm["memory_bytes"] is None
        else vm["memory_bytes"] - vm["used_memory_bytes"],
        free_gpus=vm["gpus"] - vm["used_gpus"],
        hardware=hardware_of(vm) if known else None,
        key=binding(isolation, vm["bound_owner_id"], vm["bound_sandbox"]),
    )
