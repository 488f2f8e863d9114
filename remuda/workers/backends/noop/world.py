"""All simulated VMs of this process, and the hands that reach into them.

    from remuda.workers.backends.noop.world import world

    world().machine(vm_id).faults.lose_answers = 1
    world().finish(vm_id, attempt_id, exit_code=3)

Nothing of it outlives the process, and no other process sees it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remuda.errors import InstanceNotFound, VmUnreachable
from remuda.workers.backends.noop.faults import Faults, ProviderFaults, of_settings
from remuda.workers.backends.noop.loop import Loop
from remuda.workers.backends.noop.runner import SimulatedRunner
from remuda.workers.onvm.processes import now

__all__ = ["Machine", "World", "world"]

MEMORY = 8 << 30  # bytes of a VM for which none were asked


@dataclass
class Machine:
    """One simulated VM."""

    vm_id: str
    token: str
    pool: str
    runner: SimulatedRunner
    boots_at: float = 0.0

    @property
    def faults(self) -> Faults:
        """What goes wrong between its controllers and it; may be changed at any time."""
        return self.runner.faults


class World:
    """The machines by id, and what goes wrong at their provider; for use by many threads."""

    def __init__(self) -> None:
        """Begin empty."""
        self.loop = Loop()
        self._machines: dict[str, Machine] = {}
        self._plans: dict[str, ProviderFaults] = {}

    # ---- the provider's side

    def plan(self, settings: Mapping[str, Any]) -> ProviderFaults:
        """Return what goes wrong for pools of these settings; its counts are used up but once."""
        key = json.dumps(settings, sort_keys=True, default=str)
        with self.loop.lock:
            if key not in self._plans:
                values = settings.get("provider_faults", {})
                self._plans[key] = of_settings(ProviderFaults, values, what="provider_faults")
            return self._plans[key]

    def add(
        self,
        token: str,
        *,
        name: str,
        pool: str,
        slots: int,
        memory_bytes: int | None = None,
        heartbeat_s: float = 5.0,
        faults: Faults | None = None,
        boot_s: float = 0.0,
    ) -> Machine:
        """Return the machine of this token, made now if there is none."""
        stem = re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64]
        vm_id = f"{stem}-{hashlib.sha256(token.encode()).hexdigest()[:16]}"
        with self.loop.lock:
            for known in self._machines.values():
                if known.token == token:
                    return known
            runner = SimulatedRunner(
                self.loop,
                name=name,
                slots=slots,
                memory=memory_bytes or MEMORY,
                heartbeat_s=heartbeat_s,
                faults=faults or Faults(),
            )
            machine = Machine(vm_id, token, pool, runner, boots_at=now() + boot_s)
            self._machines[vm_id] = machine
            return machine

    def all(self) -> list[Machine]:
        """Return every machine there is."""
        with self.loop.lock:
            return list(self._machines.values())

    def machine(self, vm_id: str) -> Machine:
        """Return a machine; raises InstanceNotFound."""
        with self.loop.lock:
            if vm_id not in self._machines:
                raise InstanceNotFound(f"there is no simulated VM {vm_id!r} in this process")
            return self._machines[vm_id]

    def vanish(self, vm_id: str) -> None:
        """Have a machine be gone; harmless if it is."""
        with self.loop.lock:
            machine = self._machines.pop(vm_id, None)
            if machine:
                machine.runner.kill()

    # ---- the backend's side

    def connect(self, vm_id: str, *, name: str) -> Any:
        """Return a socket to a machine's runner; raises VmUnreachable."""
        with self.loop.lock:
            machine = self._machines.get(vm_id)
            if machine is None:
                raise VmUnreachable(f"cannot reach VM {name}: it is gone")
            if (
                not machine.runner.alive
                or machine.boots_at > now()
                or machine.faults.use_up("refuse_connects")
            ):
                raise VmUnreachable(f"cannot reach VM {name}: its runner does not answer")
            try:
                return machine.runner.attach()
            except OSError as error:
                hint = "each channel takes two descriptors: raise `ulimit -n`"
                raise VmUnreachable(f"cannot reach VM {name}: {error}", hint=hint) from error

    def revive(self, vm_id: str, *, name: str) -> None:
        """Start a killed runner again; raises VmUnreachable if the machine is gone."""
        with self.loop.lock:
            if vm_id not in self._machines:
                raise VmUnreachable(f"VM {name} is gone")
            self._machines[vm_id].runner.revive()

    # ---- the tests' side

    def kill_runner(self, vm_id: str) -> None:
        """Kill a machine's runner: channels break, and what ran is LOST once it is revived."""
        with self.loop.lock:
            self.machine(vm_id).runner.kill()

    def drop_channels(self, vm_id: str) -> None:
        """Break every channel to a machine; its jobs run on."""
        with self.loop.lock:
            self.machine(vm_id).runner.hang_up()

    def finish(
        self, vm_id: str, attempt_id: int, *, exit_code: int = 0, signal: int | None = None
    ) -> None:
        """Let a running attempt's process end now; ValueError if it does not run."""
        with self.loop.lock:
            runner = self.machine(vm_id).runner
            code = None if signal else exit_code
            runner.went(runner.running(attempt_id), code, signal)
            runner.settle()

    def clear(self) -> None:
        """Have all machines be gone, and forget all plans."""
        with self.loop.lock:
            for vm_id in list(self._machines):
                self.vanish(vm_id)
            self._plans.clear()


_world: World | None = None
_lock = threading.Lock()


def world() -> World:
    """Return this process's world; a forked child begins with one of its own."""
    global _world
    with _lock:
        if _world is None:
            _world = World()
        return _world


def _after_fork() -> None:
    global _world, _lock
    _world, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
