"""A pool as it is simulated, and what became of it: see `remuda.workers.simulation`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from remuda.policies import ElasticSettings, Policy
from remuda.workers.scaling import Decision

__all__ = ["JobRun", "PoolModel", "Simulation", "Step", "VmRun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolModel:
    """A pool as far as it matters. `size` None: `instance_count` VMs. `boot_s`: asked for to running.

    `price`: of a VM for an hour, from when it is asked for. `failing_launches`: the share of VMs that
    fail when they should run, chance decided by `seed`.
    """

    slots_per_vm: int = 1
    memory_bytes_per_vm: int | None = None
    size: ElasticSettings | None = None
    instance_count: int = 1
    policies: tuple[Policy, ...] = ()
    boot_s: float = 60.0
    price: float = 0.0
    failing_launches: float = 0.0
    seed: int = 1


@dataclass(slots=True)
class JobRun:
    """What became of a job; None: it never did. `submit_s` as in the trace."""

    submit_s: float
    cores: int
    vm: int | None = None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(slots=True)
class VmRun:
    """The life of a VM, in seconds of the trace; None: not yet."""

    slots: int
    asked_s: float
    ready_s: float
    closed_s: float | None = None
    busy_until_s: float = 0.0
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """A decision at `at_s`. `changes`: jobs that had come or ended before it, in all."""

    at_s: float
    decision: Decision
    demand_slots: int
    changes: int


@dataclass(slots=True)
class Simulation:
    """What happened until `end_s`. `points`: (time, VMs, running slots, busy slots, waiting jobs)."""

    start: datetime
    jobs: list[JobRun]
    vms: list[VmRun]
    steps: list[Step]
    points: list[tuple[float, int, int, int, int]]
    price: float
    end_s: float = 0.0

    def cost(self, until_s: float | None = None) -> float:
        """Return what its VMs cost up to a time of the trace, by default its end."""
        until = self.end_s if until_s is None else until_s
        hours = sum(
            max(0.0, min(until, vm.closed_s if vm.closed_s is not None else until) - vm.asked_s)
            for vm in self.vms
        )
        return hours / 3600 * self.price
