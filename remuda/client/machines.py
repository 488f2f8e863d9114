"""What the client offers of VMs: lists of them, drains and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remuda.checks import seconds, shown, whole
from remuda.client.explainer import Explaining
from remuda.client.leasing import Leasing
from remuda.client.looking import Looking
from remuda.client.owning import Owning
from remuda.client.pools import Pool
from remuda.client.vms import UnownedMachine, VmInfo, unowned_machine, vm_info
from remuda.errors import InstanceNotFound
from remuda.models import ledger, query, requests, retiring
from remuda.models.selecting import states_of
from remuda.models.states import VmState

_LONGEST_S = 7 * 86_400


class Machines(Looking, Leasing, Owning, Explaining):
    """The VMs' part of `remuda.client.Client`."""

    def vms(
        self,
        *,
        pool: Pool | str | Sequence[Pool | str] | None = None,
        state: str | Sequence[str] | None = None,
        ip: str | None = None,
        all: bool = False,
        older_s: float | None = None,
        newer_s: float | None = None,
        sort: str | Sequence[str] | None = None,
        start: int = 0,
        limit: int | None = None,
        **filters: Any,
    ) -> list[VmInfo]:
        """Return the VMs that meet every filter; gone ones (HALTED) only if `all` or asked for.

        `ip`: those that have this address. `filters`: by field, such as `name="sim-*"`,
        `load=(0.5, None)`, `image=["a", "b"]`; see
        docs/queries.md. `older_s`, `newer_s`: made at least, less than so long ago. `sort`: fields,
        `-` for descending; `start`, `limit`: a page of them. Raises BadInput, UnknownPool.
        """
        pool_id = self._pool_ids(pool)
        found = self._context.read(
            lambda c: query.vms(
                c,
                pool_id=pool_id,
                states=state,
                halted=all,
                filters=filters,
                older_s=older_s,
                newer_s=newer_s,
                sort=sort,
                start=0 if ip else start,
                limit=None if ip else limit,
            )
        )
        if ip is not None:
            there = [row for row in found if ip in (row["private_ip"], row["public_ip"])]
            found = there[start:] if limit is None else there[start : start + limit]
        return [vm_info(row) for row in found]

    def vm(self, vm_id: int) -> VmInfo:
        """Return one VM; raises InstanceNotFound."""
        return vm_info(self._context.read(lambda c: query.vm(c, vm_id)))

    def drain_vm(self, vm_id: int) -> None:
        """Have a VM take no new work and stop when the old is done.

        Raises InstanceNotFound, IllegalTransition when it is stopping already.
        """
        self._context.commit(lambda c: requests.drain_vm(c, vm_id))

    def terminate_vm(self, vm_id: int, *, now: bool = False) -> bool:
        """Have a VM removed when its work is done, or `now`: its jobs then run again elsewhere.

        Returns whether it goes at once. Raises InstanceNotFound, IllegalTransition.
        """
        return self._context.commit(lambda c: requests.stop_vm(c, vm_id, now=now))

    def reboot_vm(self, vm_id: int, *, drain: bool = False) -> None:
        """Have a VM's machine restarted, when its work is done if `drain`, else at once.

        What runs then is lost and placed anew; the VM takes work again when it has come up and is
        prepared. Raises InstanceNotFound, IllegalTransition unless it is RUNNING or STALLED.
        """
        self._context.commit(lambda c: retiring.ask_reboot(c, vm_id, drain=drain))

    def interrupt_vm(self, vm_id: int, *, in_s: float = 120.0) -> None:
        """Tell that a VM will be taken away in `in_s` seconds, as the notice of a spot market does.

        It takes no new work; what still runs by then is placed anew, first of all and without
        counting as a loss. Raises InstanceNotFound, IllegalTransition when it is on its way out.
        """
        seconds("in_s", in_s, most=_LONGEST_S, zero=True)
        self._context.commit(lambda c: retiring.interrupt_vm(c, vm_id, in_s=in_s))

    def leaks(self, *, all: bool = False) -> list[UnownedMachine]:
        """Return the machines that providers have and no VM owns; with `all`, past ones too."""
        return [
            unowned_machine(row) for row in self._context.read(lambda c: ledger.leaks(c, gone=all))
        ]

    def unowned_seconds(self) -> float:
        """Return the VM-seconds that machines of our pools were there, unowned, past the grace."""
        grace_s = self._context.settings.unowned_grace_s
        return self._context.read(lambda c: ledger.unowned_seconds(c, grace_s=grace_s))

    def start_vm_termination(
        self, vm: int | str, *, allowed_pre_state: str | Sequence[str] | None = None
    ) -> bool:
        """Have a VM, by id or name, terminated from one of these states (None: from any before).

        Of many who ask at once exactly one gets True, the others IllegalTransition, which tells the
        state found. To have a STOPPING one sent for again, name that state: False then. Raises
        InstanceNotFound, BadInput for an unknown state.
        """
        named = states_of(VmState, allowed_pre_state)
        allowed = None if named is None else [VmState(state) for state in named]
        vm_id = self._vm_id(vm)
        return self._context.commit(lambda c: requests.start_termination(c, vm_id, allowed=allowed))

    def _vm_id(self, vm: int | str) -> int:
        if not isinstance(vm, str):
            return whole("a VM's id", vm, least=1, most=2**63 - 1)
        found = self._context.read(lambda c: query.vms(c, halted=True, filters={"name": vm}))
        exact = [row["id"] for row in found if row["name"] == vm]
        if not exact:
            raise InstanceNotFound(f"there is no VM {shown(vm)}", hint="`remuda vm list`")
        return int(exact[0])
