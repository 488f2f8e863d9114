"""The `noop` provider: makes and removes the simulated VMs of this process, with faults on demand.

A pool's settings may hold `faults` (see `Faults`) for its VMs, and `provider_faults` (see
`ProviderFaults`) for the provider.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from typing import Any

from remuda.config import Settings
from remuda.errors import BadInput, TransientProviderError
from remuda.workers.backends.noop.faults import Faults, ProviderFaults, of_settings
from remuda.workers.backends.noop.world import Machine, world
from remuda.workers.onvm.processes import now
from remuda.workers.providers.base import Provider, VmDescription, VmSpec

__all__ = ["NoopProvider"]

KNOWN = ("faults", "provider_faults")


class NoopProvider(Provider):
    """VMs that are but memory of this process: another process sees none of them."""

    kind = "noop"

    def __init__(
        self, settings: Settings | None = None, pool_settings: Mapping[str, Any] | None = None
    ) -> None:
        """Work as pools of these settings have it; needs nothing of the installation's."""
        self._settings = dict(pool_settings or {})
        self.validate(self._settings)

    @property
    def faults(self) -> ProviderFaults:
        """What goes wrong; shared by all providers of the same settings, changed at will."""
        return world().plan(self._settings)

    def of_pool(self, settings: Mapping[str, Any]) -> NoopProvider:
        """Return the provider with that pool's faults."""
        return NoopProvider(None, settings)

    def spawn(self, spec: VmSpec, token: str) -> str:
        """Make a VM, at once or, with `boot_s`, soon."""
        act = self.faults.strike("spawn")
        with world().loop.lock:
            self.faults.refuse(spec.offer)
            settings = {**self._settings, **spec.settings}
            faults = of_settings(Faults, settings.get("faults", {}), what="faults")
            machine = world().add(
                token,
                name=spec.name,
                pool=spec.pool,
                slots=spec.slots,
                memory_bytes=spec.memory_bytes,
                heartbeat_s=spec.heartbeat_s,
                faults=faults,
                boot_s=self.faults.boot_s,
            )
            if self.faults.lose_spawns > 0:
                self.faults.lose_spawns -= 1
                act = "lost"
        _lose(act, f"the spawn of {spec.name}")
        return machine.vm_id

    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        """Return those there are."""
        wanted = set(ids)
        act = self.faults.strike("describe")
        _lose(act, "describe")
        found = [self._described(m) for m in world().all() if m.vm_id in wanted]
        return {vm.provider_id: vm for vm in _part(act, found)}

    def list(self, tag: str) -> builtins.list[VmDescription]:
        """Return those of a pool, or all."""
        act = self.faults.strike("list")
        _lose(act, "list")
        return _part(act, [self._described(m) for m in world().all() if tag in ("", m.pool)])

    def terminate(self, provider_id: str) -> None:
        """Have it be gone."""
        act = self.faults.strike("terminate")
        world().vanish(provider_id)
        _lose(act, f"the termination of {provider_id}")

    def livecheck(self, provider_id: str, description: VmDescription) -> None:
        """Find nothing wrong, unless told so."""
        _lose(self.faults.strike("livecheck"), "livecheck")

    def release(self, provider_id: str) -> None:
        """Do nothing, unless told so."""
        _lose(self.faults.strike("release"), "release")

    def price(self, spec: VmSpec) -> float | None:
        """Say what it was told that the offer costs."""
        return self.faults.price_of(spec.offer)

    def validate(self, settings: Mapping[str, Any]) -> None:
        """Accept the faults, rightly written."""
        unknown = ", ".join(sorted(str(name) for name in settings if name not in KNOWN))
        if unknown:
            known = ", ".join(KNOWN)
            raise BadInput(f"the noop provider has no setting {unknown}", hint=f"known: {known}")
        of_settings(Faults, settings.get("faults", {}), what="faults")
        of_settings(ProviderFaults, settings.get("provider_faults", {}), what="provider_faults")

    def _described(self, machine: Machine) -> VmDescription:
        address = {"noop": machine.vm_id}
        if self.faults.address:
            address["address"] = self.faults.address
        return VmDescription(
            machine.vm_id,
            "pending" if machine.boots_at > now() else "running",
            address=address,
            private_ip=self.faults.ip or "127.0.0.1",
            token=machine.token,
            pool=machine.pool,
        )


def _lose(act: str, what: str) -> None:
    if act == "lost":
        raise TransientProviderError(f"no answer came to {what}")


def _part(act: str, found: builtins.list[VmDescription]) -> builtins.list[VmDescription]:
    return found[1::2] if act == "half" else found
