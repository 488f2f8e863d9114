"""Simulations of a pool: a trace of jobs played against its settings, present or changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from remuda.checks import seconds, whole
from remuda.client import pool_settings
from remuda.errors import BadInput
from remuda.models import trace_source
from remuda.policy_rows import own_size, policies_of
from remuda.traces import Trace, trace_of

if TYPE_CHECKING:
    from remuda.client.context import Context
    from remuda.workers.simulated import PoolModel, Simulation

_BOOT_S = {"local": 2.0}
_OTHER_BOOT_S = 60.0
_CHANGES = (
    *("elastic_minimum_slots", "elastic_maximum_slots", "elastic_minimum_idle_slots"),
    *("elastic_minimum_idle_time_s", "elastic_resize_factor", "elastic_resize_period_s"),
    *("is_elastic", "instance_count", "slots_per_vm", "memory_bytes_per_vm", "policies"),
)


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of a simulation: `summary` in numbers, and the moments between which nothing changed.

    `points`: (seconds from `start`, VMs, running slots, busy slots, waiting jobs). `waits`: (seconds
    at which a job was submitted, seconds until it started), of those that started. `costs`:
    (seconds, cost up to then).
    """

    name: str
    start: datetime
    summary: dict[str, float | int | None]
    points: list[tuple[float, int, int, int, int]]
    waits: list[tuple[float, float]]
    costs: list[tuple[float, float]]


def model_of(
    row: Mapping[str, Any],
    *,
    changes: Mapping[str, Any],
    boot_s: float | None,
    measured_boot_s: float | None,
    price: float | None,
    failing_launches: float = 0.0,
) -> PoolModel:
    """Return a pool (a row of `remuda.models.query.pools`) as it is simulated, with changes.

    Raises BadInput naming what is wrong, or cannot be simulated.
    """
    from remuda.workers.simulated import PoolModel

    unknown = sorted(set(changes) - set(_CHANGES))
    if unknown:
        raise BadInput(f"a simulation cannot change {', '.join(unknown)[:200]}")
    checked = pool_settings.checked(changes)
    pool_settings.check_bounds(checked, row)
    pool = {**row, **checked}
    if boot_s is None:
        boot_s = measured_boot_s
    usual_s = _BOOT_S.get(row["provider"], _OTHER_BOOT_S)
    prices = [offer["price"] for offer in row["offers"] if offer.get("price") is not None]
    return PoolModel(
        slots_per_vm=pool["slots_per_vm"],
        memory_bytes_per_vm=pool["memory_bytes_per_vm"],
        size=own_size(pool),
        instance_count=pool["instance_count"],
        policies=policies_of(pool["policies"]),
        boot_s=usual_s if boot_s is None else seconds("boot_s", boot_s, most=86_400, zero=True),
        price=(prices[0] if prices else 0.0)
        if price is None
        else seconds("price", price, most=1e9, zero=True),
        failing_launches=seconds("failing_launches", failing_launches, most=1, zero=True),
    )


def compare(
    models: Mapping[str, PoolModel], trace: Trace, *, start: datetime | None = None
) -> list[Simulated]:
    """Play a trace against each model, all for the same time, and return what came of each."""
    from remuda.workers.simulation import simulate

    begin = start or trace.start or datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    if begin.tzinfo is None:
        raise BadInput("start must have a time zone")
    found = {name: simulate(model, trace.jobs, start=begin) for name, model in models.items()}
    end_s = max(simulation.end_s for simulation in found.values())
    for name, model in models.items():
        if found[name].end_s < end_s:
            found[name] = simulate(model, trace.jobs, start=begin, until_s=end_s)
    return [_told(name, simulation) for name, simulation in found.items()]


def history_trace(context: Context, pool_id: int, *, since_s: float, limit: int = 200_000) -> Trace:
    """Return the jobs of a pool that ended, submitted in the last `since_s` seconds, as a trace.

    Of more than `limit` the newest; raises BadInput if there is none.
    """
    age_s = seconds("since", since_s, most=366 * 86_400)
    most = whole("limit", limit, least=1, most=1_000_000)
    found = context.read(lambda c: trace_source.ended_jobs(c, pool_id, age_s=age_s, limit=most))
    if not found:
        raise BadInput("no job of the pool has ended in that time", hint="a longer --since")
    return trace_of(enumerate(found, 1), what="the pool's history")


def measured_boot_s(context: Context, pool_id: int) -> float | None:
    """Return how long its latest VMs took from being asked for to running; None: not known."""
    return context.read(lambda c: trace_source.boot_s(c, pool_id))


def _told(name: str, found: Simulation) -> Simulated:
    waits = [
        (run.submit_s, run.start_s - run.submit_s) for run in found.jobs if run.start_s is not None
    ]
    sorted_s = sorted(wait for _, wait in waits)
    alive_s = sum((vm.closed_s or found.end_s) - vm.asked_s for vm in found.vms)
    slot_s = sum(vm.slots * max(0.0, (vm.closed_s or found.end_s) - vm.ready_s) for vm in found.vms)
    busy_s = sum(run.cores * (run.end_s - (run.start_s or 0)) for run in found.jobs if run.end_s)
    steps = [step.decision for step in found.steps]
    summary: dict[str, float | int | None] = {
        "jobs": len(found.jobs),
        "ended": sum(run.end_s is not None for run in found.jobs),
        "last_end_s": max((run.end_s for run in found.jobs if run.end_s is not None), default=None),
        "wait_mean_s": sum(sorted_s) / len(sorted_s) if sorted_s else None,
        "wait_p50_s": _quantile(sorted_s, 0.5),
        "wait_p95_s": _quantile(sorted_s, 0.95),
        "wait_max_s": sorted_s[-1] if sorted_s else None,
        "vms_max": max((point[1] for point in found.points), default=0),
        "vms_made": len(found.vms),
        "launches_failed": sum(vm.failed for vm in found.vms),
        "vm_hours": alive_s / 3600,
        "utilisation": busy_s / slot_s if slot_s else None,
        "cost": found.cost(),
        "grown": sum(decision.grow_vms > 0 for decision in steps),
        "shrunk": sum(bool(decision.close_vm_ids or decision.drain_vm_ids) for decision in steps),
    }
    return Simulated(name, found.start, summary, found.points, waits, _costs(found))


def _costs(found: Simulation) -> list[tuple[float, float]]:
    """Return the cost as it grows, from the number of VMs at each moment."""
    total, costs = 0.0, [(0.0, 0.0)]
    for (at, vms, *_), (until, *_) in zip(found.points, found.points[1:], strict=False):
        total += vms * (until - at) / 3600 * found.price
        costs.append((until, total))
    return costs


def _quantile(values: Sequence[float], part: float) -> float | None:
    return values[min(len(values) - 1, int(part * len(values)))] if values else None
