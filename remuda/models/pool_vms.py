"""The VMs of one pool by what their provider calls them: who is in, who comes in, who leaves."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import IllegalTransition, InstanceNotFound, TransientProviderError, UnknownPool
from remuda.models import declaring
from remuda.models.database import rows
from remuda.models.machines import has_token, set_place, vm_at
from remuda.models.states import VmState
from remuda.models.vm_life import insert_vms, move_vm

# What is being ended is in no more: its row waits for the provider to confirm.
_IN = """pool_id = :pool AND provider_id IS NOT NULL
    AND state NOT IN ('STOPPING', 'ERROR', 'HALTED') AND (CAST(:offer AS text) IS NULL OR offer = :offer)"""


def member_ids(connection: Connection, pool_id: int, *, offer: str | None = None) -> list[str]:
    """Return the provider's ids of the pool's VMs (of one offer, if given), the oldest first."""
    found = rows(
        connection,
        f"SELECT provider_id FROM vms WHERE {_IN} GROUP BY 1 ORDER BY min(id)",
        pool=pool_id,
        offer=offer,
    )
    return [row["provider_id"] for row in found]


def is_member(
    connection: Connection, pool_id: int, provider_id: str, *, offer: str | None = None
) -> bool:
    """Return whether the pool has a VM of that id."""
    found = rows(
        connection,
        f"SELECT FROM vms WHERE {_IN} AND provider_id = :id LIMIT 1",
        pool=pool_id,
        offer=offer,
        id=provider_id,
    )
    return bool(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A machine as its provider made it. `price`: None, what its offer says holds.

    `release_hook`: its provider makes it ready between two users. `cores`, `memory_bytes`: what it says
    that the machine has, None: nothing.
    """

    provider_id: str
    token: str = ""
    address: Mapping[str, Any] = field(default_factory=dict)
    private_ip: str | None = None
    public_ip: str | None = None
    price: float | None = None
    release_hook: bool = False
    cores: int | None = None
    memory_bytes: int | None = None

    def promised(self) -> dict[str, int]:
        """Return what the provider says of its size."""
        told = {"cores": self.cores, "memory_bytes": self.memory_bytes}
        return {name: size for name, size in told.items() if size is not None}


def admit(connection: Connection, pool_id: int, machine: Arrival) -> None:
    """Take a machine in: as the intent of its token, or, if there is none, as a VM of its own.

    One that is in already is left as it is. Raises UnknownPool, and what `settle` does.
    """
    # Two who take in the same machine do so one after the other.
    locked = rows(
        connection, "SELECT id FROM pools WHERE id = :pool FOR NO KEY UPDATE", pool=pool_id
    )
    if not locked:
        raise UnknownPool(f"there is no pool with id {pool_id}")
    if is_member(connection, pool_id, machine.provider_id):
        return
    known = _uuid(machine.token)
    intents = rows(
        connection,
        "SELECT id FROM vms WHERE pool_id = :pool AND token = CAST(:token AS uuid)",
        pool=pool_id,
        token=known,
    )
    if intents:
        vm_id = intents[0]["id"]
    else:
        [vm_id] = insert_vms(connection, pool_id, 1)
        if known is not None:
            connection.execute(
                text("UPDATE vms SET token = CAST(:token AS uuid) WHERE id = :vm"),
                {"token": known, "vm": vm_id},
            )
    settle(connection, vm_id, machine, token=None)


def settle(connection: Connection, vm_id: int, machine: Arrival, *, token: str | None) -> None:
    """Bring a NEW VM to SUBMITTED: this machine was made for it, with that token (None: no matter).

    Raises TransientProviderError while another VM in use is at its address, BadInput for an IP that
    is none, IllegalTransition when it is past being made or launched anew by another token.
    """
    _stand(connection, vm_id, machine, token)
    fields = {
        "provider_id": machine.provider_id,
        "launch_failures": 0,
        "error": None,
        "release_hook": machine.release_hook,
        "address": dict(machine.address),
        "private_ip": machine.private_ip,
        "public_ip": machine.public_ip,
        "facts": {"promised": machine.promised()},
        **({} if machine.price is None else {"price": machine.price}),
    }
    move_vm(connection, vm_id, VmState.SUBMITTED, fields=fields)


def move_in(connection: Connection, vm_id: int, machine: Arrival, *, token: str) -> None:
    """Record where the machine of a VM that has not run yet is now. Raises as `settle`."""
    _stand(connection, vm_id, machine, token)
    set_place(
        connection,
        vm_id,
        address=machine.address,
        private_ip=machine.private_ip,
        public_ip=machine.public_ip,
        promised=machine.promised(),
    )


def _stand(connection: Connection, vm_id: int, machine: Arrival, token: str | None) -> None:
    """Make sure that the VM, locked from here on, is the machine's, and its address nobody else's."""
    if token is not None and not has_token(connection, vm_id, token):
        raise IllegalTransition(f"VM {vm_id} is launched anew, from another offer")
    rival = vm_at(connection, vm_id, machine.address)
    if rival is not None:
        raise TransientProviderError(f"its address is that of VM {rival}, which is in use")


def dismiss(connection: Connection, pool_id: int, provider_id: str) -> None:
    """Have a VM leave the pool: it is STOPPING, and terminated. Raises InstanceNotFound."""
    found = rows(
        connection,
        f"SELECT id FROM vms WHERE {_IN} AND provider_id = :id ORDER BY id FOR NO KEY UPDATE",
        pool=pool_id,
        offer=None,
        id=provider_id,
    )
    if not found:
        raise InstanceNotFound(f"the pool has no VM {provider_id[:100]!r}")
    for row in found:
        declaring.declare_stopping(connection, row["id"])


def _uuid(token: str) -> str | None:
    try:
        return str(uuid.UUID(token))
    except ValueError:
        return None
