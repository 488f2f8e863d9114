"""The VMs of a pool as a set of ids and a mapping to what their provider says of them.

Ids are the provider's. Who is in the pool is what the rows say, at every call, so two processes
never disagree; what a VM is like is asked of the provider once and then remembered. Whoever launches,
looks for, ends or compares the machines of a pool does so through one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from sqlalchemy import Connection

from remuda.checks import text_of
from remuda.errors import BadInput, InstanceNotFound, Refused
from remuda.models import pool_vms
from remuda.models.query import pool_row
from remuda.workers.providers.base import Provider, VmDescription, VmSpec

__all__ = ["VMPool"]

MOST_ID_BYTES = 500
MOST_PRICE = 1e9  # an hour; what is beyond makes no sense
T = TypeVar("T")
Transact = Callable[[Callable[[Connection], Any]], Any]


class VMPool:
    """One pool's VMs. False when empty; iterates over the ids there were when that began.

    Pickled, it is the pool's id, name and the ids last seen; `bind` gives it a database and a
    provider again. For one thread.
    """

    def __init__(
        self,
        pool: int,
        provider: Provider,
        transact: Transact,
        *,
        offer: str | None = None,
        known: tuple[str, str] | None = None,
    ) -> None:
        """Look at the pool of that id through `transact`, a function that runs one transaction.

        `offer`: only at the VMs of that offer, which `provider` made. `known`: the pool's name and
        the tag of its machines (its UUID), where the caller has them; else they are read, which
        raises UnknownPool.
        """
        self.pool_id, self.offer = pool, offer
        self._cache: dict[str, VmDescription] = {}
        self._ids: list[str] = []
        self.bind(provider, transact)
        if known is None:
            row = self._run(lambda c: pool_row(c, pool))
            known = row["name"], str(row["uuid"])
        self.name, self.tag = known

    def bind(self, provider: Provider, transact: Transact) -> None:
        """Use this provider and database from now on."""
        self._provider: Provider | None = provider
        self._transact: Transact | None = transact

    @property
    def provider(self) -> Provider:
        """Who makes the machines; raises Refused when unpickled and not bound."""
        if self._provider is None:
            raise _unbound()
        return self._provider

    # The set

    def __contains__(self, vm_id: object) -> bool:
        if not isinstance(vm_id, str) or "\0" in vm_id or len(vm_id) > MOST_ID_BYTES:
            return False
        known = vm_id
        return self._run(lambda c: pool_vms.is_member(c, self.pool_id, known, offer=self.offer))

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids())

    def __len__(self) -> int:
        return len(self.ids())

    def ids(self) -> list[str]:
        """Return the ids, the oldest VM's first."""
        self._ids = self._run(lambda c: pool_vms.member_ids(c, self.pool_id, offer=self.offer))
        return list(self._ids)

    def add_vm(self, vm: VmDescription, cache: bool = True, *, intent: int | None = None) -> None:
        """Take a machine in, SUBMITTED: as the VM its token was made for, else as one of its own.

        `intent`: the id of the VM that it was made for; then nothing else may become of it. One that
        is in already is left as it is; with `cache` its description is remembered. Raises BadInput
        for one that is gone or has no proper id or IP, IllegalTransition when the VM is past being
        made, a TransientProviderError while another VM in use is at its address.
        """
        machine = self._arrival(vm)
        if intent is None:
            self._run(lambda c: pool_vms.admit(c, self.pool_id, machine))
        else:
            self._run(lambda c: pool_vms.settle(c, intent, machine, token=vm.token))
        self._cache.pop(vm.provider_id, None)
        if cache:
            self._cache[vm.provider_id] = vm

    def set_place(self, vm: VmDescription, *, intent: int) -> None:
        """Record where the machine of a VM that does not run yet is by now. Raises as `add_vm`."""
        machine = self._arrival(vm)
        self._run(lambda c: pool_vms.move_in(c, intent, machine, token=vm.token))

    def _arrival(self, vm: VmDescription) -> pool_vms.Arrival:
        provider_id = text_of("a VM's id", vm.provider_id, least=1, most=MOST_ID_BYTES)
        if vm.state == "gone":
            raise BadInput(f"VM {provider_id[:100]!r} is gone")
        sane = vm.price is not None and 0 <= vm.price <= MOST_PRICE
        return pool_vms.Arrival(
            provider_id=provider_id,
            token=vm.token,
            address=dict(vm.address),
            private_ip=vm.private_ip or None,
            public_ip=vm.public_ip or None,
            price=vm.price if sane else None,
            release_hook=self.provider.has_release,
            cores=vm.cores,
            memory_bytes=vm.memory_bytes,
        )

    def remove_vm(self, vm_id: str) -> None:
        """Have a VM leave: it takes no more work and is terminated. Raises InstanceNotFound."""
        if vm_id not in self:
            raise _unknown(vm_id)
        self._cache.pop(vm_id, None)
        self._run(lambda c: pool_vms.dismiss(c, self.pool_id, vm_id))

    __delitem__ = remove_vm

    # The mapping

    def get_vm(self, vm_id: str, force_reload: bool = False) -> VmDescription:
        """Return what the provider said of a VM, asking it if that is not known, or anew.

        Raises InstanceNotFound when the pool has no such VM or its provider has it no more, and
        what the provider raises.
        """
        if vm_id not in self:
            self._cache.pop(vm_id, None)
            raise _unknown(vm_id)
        if force_reload or vm_id not in self._cache:
            self.describe([vm_id])
        found = self._cache[vm_id]
        if found.state == "gone":
            raise InstanceNotFound(f"VM {vm_id[:100]!r} is gone at its provider")
        return found

    __getitem__ = get_vm

    def get_all_vms(self) -> list[VmDescription]:
        """Return what the provider said of all VMs it still has, asked in one call if need be."""
        ids = self.ids()
        self.describe([vm_id for vm_id in ids if vm_id not in self._cache])
        return [self._cache[vm_id] for vm_id in ids if self._cache[vm_id].state != "gone"]

    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        """Ask the provider about these, in one call; return and remember those it has.

        They need not be in the pool. Of those it does not have it is remembered that they are gone.
        """
        wanted = list(ids)
        if not wanted:
            return {}
        found = self.provider.describe(wanted)
        for vm_id in wanted:  # one that is missing in the answer is gone
            self._cache[vm_id] = found.get(vm_id, VmDescription(vm_id, "gone"))
        return {vm_id: vm for vm_id in wanted if (vm := self._cache[vm_id]).state != "gone"}

    # The machines

    def spawn(self, spec: VmSpec, token: str) -> str:
        """Have the provider make the machine of an intent, whose row is committed; return its id.

        Repeated with the same token it is the same machine. It is in the pool from `add_vm` on.
        Raises what the provider does.
        """
        return self.provider.spawn(spec, token)

    def machines(self) -> list[VmDescription]:
        """Return all that the provider has of this pool, whether a VM owns it or not, and remember it."""
        found = [vm for vm in self.provider.list(self.tag) if vm.state != "gone"]
        self._cache.update((vm.provider_id, vm) for vm in found)
        return found

    def terminate(self, vm_id: str | None, *, token: str = "", look: bool = True) -> bool:
        """End a machine, looked for by its `token` if its id is not known; True once that is certain.

        False: it is on its way out, as far as is known (not `look`: nobody is asked). There being
        none is certain too. Its row is the caller's.
        """
        if vm_id is None:
            mine = (vm.provider_id for vm in self.machines() if token and vm.token == token)
            vm_id = next(mine, None)
        if vm_id is None:
            return True
        self.provider.terminate(vm_id)
        return look and not self.describe([vm_id])

    # Keeping up

    def load(self) -> None:
        """Read the ids anew, and forget all that the provider said."""
        self._cache.clear()
        self.ids()

    def save(self) -> None:
        """Return: the rows are the truth, and are written as they change."""

    def update(self, remove: bool = False) -> None:
        """Read the ids anew, and ask the provider, in one call, for all of them.

        With `remove`, forget first what is not in the pool any more, whatever becomes of the rest.
        """
        ids = self.ids()
        if remove:
            for vm_id in self._cache.keys() - set(ids):
                del self._cache[vm_id]
        self.describe(ids)

    def __getstate__(self) -> dict[str, Any]:
        kept = {"pool_id": self.pool_id, "name": self.name, "tag": self.tag}
        return {**kept, "offer": self.offer, "ids": self._ids}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.pool_id, self.name, self.tag = state["pool_id"], state["name"], state["tag"]
        self.offer = state["offer"]
        self._ids, self._cache = list(state["ids"]), {}
        self._provider = self._transact = None

    def __repr__(self) -> str:
        return f"<VMPool {self.name!r}: {len(self._ids)} VMs when last seen>"

    def _run(self, work: Callable[[Connection], T]) -> T:
        if self._transact is None:
            raise _unbound()
        done: T = self._transact(work)
        return done


def _unknown(vm_id: object) -> InstanceNotFound:
    return InstanceNotFound(f"the pool has no VM {str(vm_id)[:100]!r}")


def _unbound() -> Refused:
    return Refused("the VMPool was unpickled", hint="give it a provider and a database by `bind`")
