"""The tasks of the sweeps: what beat sends, each finding whatever no wake-up brought."""

from __future__ import annotations

import logging
from typing import Any

from remuda.models import deadlines, dependencies, upkeep, usage
from remuda.models.database import reading
from remuda.tasks import (
    budgeting,
    calling,
    cancelling,
    enqueueing,
    health,
    leasing,
    messages,
    names,
    placing,
    purging,
    resources,
    retiring,
    sizing,
)
from remuda.tasks.app import app
from remuda.tasks.flower.sweeps import Sweep
from remuda.tasks.flower.wording import counted
from remuda.tasks.runtime import get_runtime

log = logging.getLogger(__name__)


@app.task(name=names.DISPATCH, base=Sweep)  # type: ignore[untyped-decorator]
def dispatch() -> str | None:
    """Place waiting jobs."""
    placed = placing.dispatch(get_runtime())
    return f"{sum(placed.values())} placed on {counted(len(placed), 'VM')}" if placed else None


@app.task(name=names.RESIZE_POOLS, base=Sweep)  # type: ignore[untyped-decorator]
def resize_pools() -> str | None:
    """Size the pools that are due."""
    moved = sizing.resize_pools(get_runtime())
    return f"{counted(moved, 'VM')} to come or to go" if moved else None


@app.task(name=names.DECLARE_STALLED, base=Sweep)  # type: ignore[untyped-decorator]
def declare_stalled() -> str | None:
    """Declare silent VMs STALLED and requeue their jobs."""
    silent = health.declare_stalled(get_runtime())
    return f"{counted(len(silent), 'VM')} stalled" if silent else None


@app.task(name=names.RETIRE_VMS, base=Sweep)  # type: ignore[untyped-decorator]
def retire_vms() -> str | None:
    """Take VMs further that are to go or to restart."""
    moved = retiring.retire_vms(get_runtime())
    return f"{counted(moved, 'VM')} to go or to restart" if moved else None


@app.task(name=names.RECONCILE_JOBS, base=Sweep)  # type: ignore[untyped-decorator]
def reconcile_jobs() -> str | None:
    """Send again what attempts without news may have missed: start, collect, cancel, compare.

    Jobs whose parents ended before they were committed are settled.
    Calls that no watcher heard of are answered here; what owners used is added up.
    """
    runtime = get_runtime()
    late = runtime.transact(deadlines.end_overdue)
    if late:
        log.info("%d jobs did not start in the time they were given", len(late))
    unnoticed = runtime.transact(dependencies.reconcile)
    if unnoticed:
        log.info("%d dependencies had been decided unnoticed", unnoticed)
    half_life_s = runtime.settings.usage_half_life_s
    runtime.transact(lambda c: usage.fold(c, half_life_s=half_life_s))
    with reading(runtime.engine) as connection:
        missed = upkeep.attempts_without_news(connection)
    for vm_id, ids in missed.placed.items():
        messages.submit_job(vm_id, ids)
    for vm_id, ids in missed.exited.items():
        messages.get_results(vm_id, ids)
    for vm_id in missed.quiet:
        messages.update_job_state(vm_id)
    cancelled = cancelling.cancel(runtime)
    calling.answer_all(runtime)
    counts = {
        "not started in time": len(late),
        "dependencies settled": unnoticed,
        "sent again": sum(map(len, (*missed.placed.values(), *missed.exited.values()))),
        "VMs compared": len(missed.quiet),
        "being cancelled": cancelled,
    }
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n) or None


@app.task(name=names.SERVE_LEASES, base=Sweep)  # type: ignore[untyped-decorator]
def serve_leases() -> str | None:
    """End leases whose time is over; give what is free to those who wait."""
    return leasing.sweep(get_runtime())


@app.task(name=names.EXPIRE, base=Sweep)  # type: ignore[untyped-decorator]
def expire() -> None:
    """Remove what is past its time: calls, history past its retention."""
    runtime = get_runtime()
    settings = runtime.settings
    runtime.transact(
        lambda c: upkeep.expire(
            c,
            heartbeat_retention_s=settings.heartbeat_retention_s,
            event_retention_s=settings.event_retention_s,
            decision_retention_s=settings.decision_retention_s,
        )
    )


@app.task(name=names.WATCH_BUDGETS, base=Sweep)  # type: ignore[untyped-decorator]
def watch_budgets() -> str | None:
    """Compare what was spent with the budgets."""
    changed = budgeting.watch_budgets(get_runtime())
    return f"{counted(changed, 'budget')} at another level" if changed else None


@app.task(name=names.SYNCHRONIZE_ALL, base=Sweep)  # type: ignore[untyped-decorator]
def synchronize_all() -> str | None:
    """Have VMs brought the resources they lack."""
    lacking = resources.synchronize_all(get_runtime())
    return f"{counted(lacking, 'VM')} to get resources" if lacking else None


@app.task(name=names.PURGE_POOLS, base=Sweep)  # type: ignore[untyped-decorator]
def purge_pools() -> str | None:
    """Remove what was to go with deleted pools: results and resources."""
    jobs = purging.purge_pools(get_runtime())
    return f"the results of {counted(jobs, 'job')} removed" if jobs else None


@app.task(name=names.ENQUEUE)  # type: ignore[untyped-decorator]
def enqueue(specs: list[dict[str, Any]], pool: str, owner: str, idempotency_key: str) -> str:
    """Submit jobs for a producer that can reach only the broker."""
    ids = enqueueing.enqueue(get_runtime(), specs, pool=pool, owner=owner, key=idempotency_key)
    return f"{counted(len(ids), 'job')} submitted to {pool}"
