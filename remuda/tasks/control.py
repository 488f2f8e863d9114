"""The tasks of the sweeps: what beat sends, each finding whatever no wake-up brought."""

from __future__ import annotations

import logging
from typing import Any

from remuda.models import deadlines, dependencies, upkeep
from remuda.models.database import reading
from remuda.tasks import (
    calling,
    cancelling,
    enqueueing,
    health,
    ledger,
    messages,
    names,
    placing,
    sizing,
)
from remuda.tasks.app import app
from remuda.tasks.runtime import get_runtime

log = logging.getLogger(__name__)


@app.task(name=names.DISPATCH)  # type: ignore[untyped-decorator]
def dispatch() -> None:
    """Place waiting jobs."""
    placing.dispatch(get_runtime())


@app.task(name=names.RESIZE_POOLS)  # type: ignore[untyped-decorator]
def resize_pools() -> None:
    """Size the pools that are due."""
    sizing.resize_pools(get_runtime())


@app.task(name=names.DECLARE_STALLED)  # type: ignore[untyped-decorator]
def declare_stalled() -> None:
    """Declare silent VMs STALLED and requeue their jobs."""
    health.declare_stalled(get_runtime())


@app.task(name=names.RECONCILE_VMS)  # type: ignore[untyped-decorator]
def reconcile_vms() -> None:
    """Compare rows and providers."""
    ledger.reconcile_vms(get_runtime())


@app.task(name=names.RECONCILE_JOBS)  # type: ignore[untyped-decorator]
def reconcile_jobs() -> None:
    """Send again what attempts without news may have missed: start, collect, cancel, compare.

    Jobs whose parents ended before they were committed are settled.
    Calls that no watcher heard of are answered here.
    """
    runtime = get_runtime()
    late = runtime.transact(deadlines.end_overdue)
    if late:
        log.info("%d jobs did not start in the time they were given", len(late))
    unnoticed = runtime.transact(dependencies.reconcile)
    if unnoticed:
        log.info("%d dependencies had been decided unnoticed", unnoticed)
    with reading(runtime.engine) as connection:
        missed = upkeep.attempts_without_news(connection)
    for vm_id, ids in missed.placed.items():
        messages.submit_job(vm_id, ids)
    for vm_id, ids in missed.exited.items():
        messages.get_results(vm_id, ids)
    for vm_id in missed.quiet:
        messages.update_job_state(vm_id)
    cancelling.cancel(runtime)
    calling.answer_all(runtime)


@app.task(name=names.EXPIRE)  # type: ignore[untyped-decorator]
def expire() -> None:
    """End leases whose time is over; remove history past its retention."""
    runtime = get_runtime()
    settings = runtime.settings
    runtime.transact(
        lambda c: upkeep.expire(
            c,
            heartbeat_retention_s=settings.heartbeat_retention_s,
            event_retention_s=settings.event_retention_s,
        )
    )


@app.task(name=names.ENQUEUE)  # type: ignore[untyped-decorator]
def enqueue(specs: list[dict[str, Any]], pool: str, owner: str, idempotency_key: str) -> None:
    """Submit jobs for a producer that can reach only the broker."""
    enqueueing.enqueue(get_runtime(), specs, pool=pool, owner=owner, key=idempotency_key)
