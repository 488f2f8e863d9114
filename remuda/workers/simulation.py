"""What a pool would do with a trace of jobs: its sizing and placement played in simulated time.

The very functions decide that decide for real: `scaling.decide`, `outlook.outlook`, `placement.place`.
Launches may fail, by chance, and the pool pauses as it would. What is left out: other failures, owners
and their shares, isolation, GPUs and constraints, other pools, jobs placed ahead, and what it takes to
start a job.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import heappop, heappush

from remuda.errors import BadInput
from remuda.policies import next_change, policy_at
from remuda.traces import TraceRow
from remuda.workers.outlook import outlook
from remuda.workers.packing import Demand
from remuda.workers.placement import PendingJob, PlacementSnapshot, VmCapacity, place
from remuda.workers.pool_snapshot import PoolSnapshot, VmSlots
from remuda.workers.scaling import decide
from remuda.workers.simulated import JobRun, PoolModel, Simulation, Step, VmRun

__all__ = ["simulate"]

_LONGEST_PAUSE_S = 300.0
SWEEP_S = 2.0  # how often a fixed size is looked at, and drained VMs are closed
MOST_DECISIONS = 2_000_000
_SETTLING_S = 8 * 86_400  # after the last job: every policy has had its turn by then


def simulate(
    model: PoolModel, jobs: Sequence[TraceRow], *, start: datetime, until_s: float | None = None
) -> Simulation:
    """Play the trace from `start` (which the policies' clocks tell) until all jobs have ended.

    `until_s`: at least so long. Jobs that fit no VM of the pool never run. Raises BadInput when it
    would take more than two million decisions.
    """
    return _Run(model, jobs, start).play(until_s)


@dataclass(slots=True)
class _Vm:
    """A VM as it is now."""

    id: int
    run: VmRun
    memory_bytes: int | None
    running: bool = False
    draining: bool = False
    busy_slots: int = 0
    used_memory: int = 0
    idle_since: float | None = None


_SUBMIT, _READY, _END, _TICK = range(4)


@dataclass(slots=True)
class _Run:
    """The state of a simulation; times are seconds of the trace."""

    model: PoolModel
    trace: Sequence[TraceRow]
    start: datetime
    now_s: float = 0.0
    events: list[tuple[float, int, int]] = field(default_factory=list)
    vms: dict[int, _Vm] = field(default_factory=dict)
    waiting: dict[int, TraceRow] = field(default_factory=dict)
    found: Simulation = field(init=False)
    last_resize: float | None = None
    last_policy: str | None = None
    tick_at: float | None = None
    changes: int = 0
    left: int = 0
    failures: int = 0
    paused_until: float | None = None
    ranked: bool = False

    def play(self, until_s: float | None) -> Simulation:
        self.found = Simulation(
            self.start,
            [JobRun(job.submit_s, job.cores) for job in self.trace],
            [],
            [],
            [],
            self.model.price,
        )
        fitting = [number for number, job in enumerate(self.trace) if self._fits(job)]
        self.left = len(fitting)
        self.ranked = any(job.priority for job in self.trace)
        for number in fitting:
            heappush(self.events, (self.trace[number].submit_s, _SUBMIT, number))
        self._tick(0.0)
        last_s = max((job.submit_s for job in self.trace), default=0.0)
        limit_s = last_s if until_s is None else max(until_s, last_s)
        while self.events:
            at_s = self.events[0][0]
            over = self.left == 0 and at_s > limit_s
            stuck = self.left > 0 and at_s > limit_s + _SETTLING_S and not self._busy()
            if over or stuck:
                break
            self._to(at_s)
        self.now_s = self.found.end_s = max(limit_s, self.now_s)
        self._point()
        return self.found

    def _to(self, at_s: float) -> None:
        """Take everything that happens at a time, place what can be placed, then decide if due."""
        self.now_s = at_s
        due = False
        while self.events and self.events[0][0] <= at_s:
            _, kind, number = heappop(self.events)
            if kind == _SUBMIT:
                self.waiting[number] = self.trace[number]
                self.changes += 1
            elif kind == _READY and number in self.vms:
                self._ready(number)
            elif kind == _END:
                self._end(number)
            elif kind == _TICK and self.tick_at is not None and self.tick_at <= at_s:
                self.tick_at, due = None, True
        self._place()
        if due:
            self._decide()
            self._place()
        else:
            self._tick(self._due_s())
        self._point()

    def _place(self) -> None:
        free = sum(vm.run.slots - vm.busy_slots for vm in self._open())
        if not free or not self.waiting:
            return
        most = max(vm.run.slots - vm.busy_slots for vm in self._open())
        chosen: list[int] = []
        for number in self._in_turn():
            if self.waiting[number].cores <= most:
                chosen.append(number)
                if len(chosen) >= free:
                    break
        found = place(
            PlacementSnapshot(
                tuple(self._pending(number) for number in chosen),
                tuple(self._capacity(vm) for vm in self._open()),
                horizon_s=0.0,
                max_ahead=0,
            ),
            self._time(),
        )
        for placed in found:
            job, vm = self.waiting.pop(placed.job_id), self.vms[placed.vm_id]
            vm.busy_slots += job.cores
            vm.used_memory += job.memory_bytes
            vm.idle_since = None
            run = self.found.jobs[placed.job_id]
            run.vm, run.start_s = placed.vm_id, self.now_s
            heappush(self.events, (self.now_s + job.wall_s, _END, placed.job_id))

    def _in_turn(self) -> Iterable[int]:
        """Return what waits in the order in which it is served."""
        if not self.ranked:
            return self.waiting
        return sorted(self.waiting, key=lambda number: (-self.waiting[number].priority, number))

    def _ready(self, number: int) -> None:
        """Have a VM run; or fail, after which its pool asks for none for a while."""
        chance = random.Random(f"{self.model.seed}:{number}").random()
        if chance >= self.model.failing_launches:
            self.vms[number].running, self.vms[number].idle_since = True, self.now_s
            self.failures, self.paused_until = 0, None
            return
        self.vms[number].run.failed = True
        self._close(number)
        self.failures += 1
        self.paused_until = self.now_s + min(_LONGEST_PAUSE_S, 2.0 ** min(self.failures, 11))
        self.changes += 1

    def _end(self, number: int) -> None:
        job, run = self.trace[number], self.found.jobs[number]
        run.end_s = self.now_s
        vm = self.vms[run.vm or 0]
        vm.busy_slots -= job.cores
        vm.used_memory -= job.memory_bytes
        vm.run.busy_until_s = self.now_s
        vm.idle_since = None if vm.busy_slots else self.now_s
        self.left -= 1
        self.changes += 1

    def _decide(self) -> None:
        snapshot = self._snapshot()
        now = self._time()
        decision = decide(snapshot, now)
        if decision.step == "early":
            self._tick(self._due_s())
            return
        change = next_change(self.model.policies, now) if self.model.policies else None
        ahead = outlook(snapshot, decision, now, change=change)
        demand = snapshot.queued_slots + sum(vm.busy_slots for vm in self.vms.values())
        self.found.steps.append(Step(self.now_s, decision, demand, self.changes))
        if len(self.found.steps) > MOST_DECISIONS:
            raise BadInput(
                "the trace takes more than two million decisions",
                hint="a longer resize_period, or a shorter trace",
            )
        self.last_resize, self.last_policy = self.now_s, snapshot.policy
        for vm_id in decision.close_vm_ids:
            self._close(vm_id)
        for vm_id in decision.drain_vm_ids:
            self.vms[vm_id].draining = True
        for vm in [vm for vm in self.vms.values() if vm.draining and not vm.busy_slots]:
            if vm.running:
                self._close(vm.id)
        for _ in range(decision.grow_vms):
            self._ask()
        acted = decision.grow_vms or decision.close_vm_ids or decision.drain_vm_ids
        if acted or any(vm.draining for vm in self.vms.values()):
            self._tick(self._due_s())
        elif ahead.next_at is not None:
            self._tick(max(self._due_s(), (ahead.next_at - self.start).total_seconds()))

    def _ask(self) -> None:
        number = len(self.found.vms) + 1
        run = VmRun(self.model.slots_per_vm, self.now_s, self.now_s + self.model.boot_s)
        self.found.vms.append(run)
        self.vms[number] = _Vm(number, run, self.model.memory_bytes_per_vm)
        heappush(self.events, (run.ready_s, _READY, number))

    def _close(self, vm_id: int) -> None:
        vm = self.vms.pop(vm_id)
        if vm.busy_slots:
            raise AssertionError(f"VM {vm_id} was closed at its work")
        vm.run.closed_s = self.now_s

    def _snapshot(self) -> PoolSnapshot:
        policy = policy_at(self.model.policies, self._time())
        size = policy.size if policy is not None else self.model.size
        name = policy.name if policy is not None else ""
        shapes = Counter((job.cores, job.memory_bytes) for job in self.waiting.values())
        return PoolSnapshot(
            pool_id=1,
            state="SUBMITTED",
            elastic=size,
            instance_count=self.model.instance_count,
            slots_per_vm=self.model.slots_per_vm,
            vms=tuple(self._slots(vm) for vm in self.vms.values()),
            queued_slots=sum(cores * count for (cores, _), count in shapes.items()),
            last_resize_at=None if self.last_resize is None else self._time(self.last_resize),
            demands=tuple(
                Demand(count=count, cores=cores, memory_bytes=memory)
                for (cores, memory), count in shapes.items()
            ),
            memory_bytes_per_vm=self.model.memory_bytes_per_vm,
            policy=name,
            policy_changed=name != (self.last_policy or ""),
            launch_failures=self.failures,
            paused_until=None if self.paused_until is None else self._time(self.paused_until),
        )

    def _slots(self, vm: _Vm) -> VmSlots:
        return VmSlots(
            vm.id,
            "running" if vm.running else "booting",
            vm.run.slots,
            vm.busy_slots,
            self._time(vm.idle_since) if vm.running and vm.idle_since is not None else None,
            vm.draining,
            free_memory_bytes=None if vm.memory_bytes is None else vm.memory_bytes - vm.used_memory,
        )

    def _capacity(self, vm: _Vm) -> VmCapacity:
        return VmCapacity(
            vm.id,
            1,
            vm.run.slots,
            vm.memory_bytes,
            vm.run.slots - vm.busy_slots,
            None if vm.memory_bytes is None else vm.memory_bytes - vm.used_memory,
            0.0,
            0,
        )

    def _pending(self, number: int) -> PendingJob:
        job = self.waiting[number]
        at = self._time(job.submit_s)
        return PendingJob(number, 1, 1, job.priority, at, job.cores, job.memory_bytes, None)

    def _open(self) -> list[_Vm]:
        return [
            vm
            for vm in self.vms.values()
            if vm.running and not vm.draining and vm.busy_slots < vm.run.slots
        ]

    def _busy(self) -> bool:
        return any(vm.busy_slots for vm in self.vms.values())

    def _due_s(self) -> float:
        """Return when the size may be decided again."""
        if self.last_resize is None:
            return self.now_s
        policy = policy_at(self.model.policies, self._time())
        size = policy.size if policy is not None else self.model.size
        period = SWEEP_S if size is None else size.resize_period
        if policy is not None and policy.kind == "fixed":
            period = max(period, SWEEP_S)
        return max(self.now_s, self.last_resize + period)

    def _tick(self, at_s: float) -> None:
        if self.tick_at is None or at_s < self.tick_at:
            self.tick_at = at_s
            heappush(self.events, (at_s, _TICK, 0))

    def _fits(self, job: TraceRow) -> bool:
        memory = self.model.memory_bytes_per_vm
        return job.cores <= self.model.slots_per_vm and (
            memory is None or job.memory_bytes <= memory
        )

    def _time(self, at_s: float | None = None) -> datetime:
        return self.start + timedelta(seconds=self.now_s if at_s is None else at_s)

    def _point(self) -> None:
        running = [vm for vm in self.vms.values() if vm.running]
        point = (
            self.now_s,
            len(self.vms),
            sum(vm.run.slots for vm in running),
            sum(vm.busy_slots for vm in running),
            len(self.waiting),
        )
        if self.found.points and self.found.points[-1][0] == self.now_s:
            self.found.points[-1] = point
        else:
            self.found.points.append(point)
