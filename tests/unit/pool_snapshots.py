"""Pools as sizing sees them, for tests: made by hand, or any there can be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from remuda.policies import ElasticSettings
from remuda.workers.pool_snapshot import PoolSnapshot, VmSlots
from remuda.workers.scaling import SIZED_STATES

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def elastic(low: int, high: int, **more: Any) -> ElasticSettings:
    return ElasticSettings(minimum_total_slots=low, maximum_total_slots=high, **more)


def vm(
    number: int,
    *,
    busy: int = 0,
    idle_s: float = 0.0,
    slots: int = 1,
    state: str = "running",
    draining: bool = False,
) -> VmSlots:
    idle = state == "running" and not busy
    since = NOW - timedelta(seconds=idle_s) if idle else None
    return VmSlots(number, state, slots, busy, since, draining)


def pool(
    settings: ElasticSettings | None, vms: list[VmSlots] | None = None, **more: Any
) -> PoolSnapshot:
    fields: dict[str, Any] = {
        "pool_id": 1,
        "state": "SUBMITTED",
        "elastic": settings,
        "instance_count": 0,
        "slots_per_vm": 1,
        "vms": tuple(vms or []),
        "queued_slots": 0,
        "last_resize_at": None,
    }
    return PoolSnapshot(**{**fields, **more})


@st.composite
def settings(draw: st.DrawFn) -> ElasticSettings:
    high = draw(st.integers(0, 24))
    return elastic(
        draw(st.integers(0, high)),
        high,
        minimum_idle_slots=draw(st.integers(0, high)),
        minimum_idle_time_seconds=draw(st.sampled_from([0, 5, 60])),
        resize_factor=draw(st.floats(0.01, 1)),
        resize_period=draw(st.integers(1, 30)),
    )


@st.composite
def pools(draw: st.DrawFn) -> PoolSnapshot:
    """Any pool: also one over its maximum, with VMs draining, static, paused or unknown."""
    size = draw(st.integers(1, 4))
    states = ["requested", "booting", "running", "running"]
    vms = []
    for number in range(1, draw(st.integers(0, 12)) + 1):
        state = draw(st.sampled_from(states))
        busy = draw(st.integers(0, size)) if state == "running" else 0
        idle_s, draining = draw(st.integers(0, 90)), draw(st.integers(0, 4)) == 0
        vms.append(vm(number, busy=busy, idle_s=idle_s, slots=size, state=state, draining=draining))
    return pool(
        draw(st.none() | settings()),
        vms,
        state=draw(st.sampled_from([*sorted(SIZED_STATES), "CLOSING"])),
        instance_count=draw(st.integers(0, 8)),
        slots_per_vm=size,
        queued_slots=draw(st.integers(0, 40)),
        last_resize_at=draw(st.none() | st.integers(0, 40).map(lambda s: NOW - timedelta(0, s))),
        provider_known=draw(st.integers(0, 5)) > 0,
        paused_until=draw(st.none() | st.integers(-5, 5).map(lambda s: NOW + timedelta(0, s))),
    )
