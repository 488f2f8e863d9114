"""What is declared of single VMs: that they were made, run, stop, are gone, and are alive.

Each call is one guarded transition in the caller's transaction. A refused one raises and changes
nothing, addresses neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import Connection, text

from remuda.checks import shown, text_of, whole
from remuda.errors import BadInput, IllegalTransition, InstanceNotFound, UnknownPool
from remuda.models import images, watches
from remuda.models.database import rows
from remuda.models.states import VmState
from remuda.models.vm_life import insert_vms, move_vm

MOST_ID_BYTES = 500
_MOST = 2**63 - 1


def insert_vm(connection: Connection, pool_id: int) -> int:
    """Insert the intent to make a VM of the pool, in NEW, and return its id.

    Raises UnknownPool, or Refused when the pool's image is in ERROR.
    """
    image = connection.scalar(text("SELECT image_id FROM pools WHERE id = :id"), {"id": pool_id})
    if image is None:
        raise UnknownPool(f"there is no pool with id {pool_id}")
    images.refuse_bad(connection, image)
    return insert_vms(connection, pool_id, 1)[0]


def set_provider_id(connection: Connection, vm_id: int, provider_id: str) -> None:
    """Note what its provider calls a NEW VM; the same again is harmless.

    Raises InstanceNotFound, or IllegalTransition when it is not NEW any more or has another.
    """
    given = text_of("a provider's id", provider_id, least=1, most=MOST_ID_BYTES)
    done = connection.execute(
        text(
            """UPDATE vms SET provider_id = :given WHERE id = :vm
               AND (state = 'NEW' AND provider_id IS NULL OR provider_id = :given)"""
        ),
        {"vm": vm_id, "given": given},
    )
    if done.rowcount == 0:
        found = _vm(connection, vm_id)
        raise IllegalTransition(
            f"VM {vm_id} is {found['state']} with the id {found['provider_id']!r}",
            hint="it is set once, while the VM is NEW",
        )


def declare_submitted(
    connection: Connection,
    vm_id: int,
    *,
    provider_id: str | None = None,
    address: Mapping[str, Any] | None = None,
    private_ip: str | None = None,
    public_ip: str | None = None,
) -> None:
    """Bring a NEW VM to SUBMITTED: its provider has it (as `provider_id`, unless that is set)."""
    fields = _given(private_ip=private_ip, public_ip=public_ip)
    if address is not None:
        fields["address"] = dict(address)
    if provider_id is None and _vm(connection, vm_id)["provider_id"] is None:
        raise BadInput(f"VM {vm_id} has no provider's id yet")
    if provider_id is not None:
        fields["provider_id"] = text_of("a provider's id", provider_id, least=1, most=MOST_ID_BYTES)
    move_vm(connection, vm_id, VmState.SUBMITTED, fields=fields)


def declare_running(
    connection: Connection,
    vm_id: int,
    *,
    private_ip: str | None = None,
    public_ip: str | None = None,
) -> None:
    """Bring a VM that boots, or was STALLED and not replaced, to RUNNING; its image is valid."""
    fields = _given(private_ip=private_ip, public_ip=public_ip)
    move_vm(connection, vm_id, VmState.RUNNING, fields=fields)
    images.validate(connection, vm_id)


def declare_stopping(connection: Connection, vm_id: int) -> None:
    """Bring a live VM to STOPPING: it takes no more work and is terminated."""
    move_vm(connection, vm_id, VmState.STOPPING)
    connection.execute(text("SELECT pg_notify('remuda_wake', 'stop')"))


def declare_halted(connection: Connection, vm_id: int) -> None:
    """Bring a STOPPING VM to HALTED: its provider confirmed that it is gone; its leases are over."""
    move_vm(connection, vm_id, VmState.HALTED)


def heartbeat(
    connection: Connection,
    vm_id: int,
    *,
    load: float,
    jobs: int,
    transferred_files: int = 0,
    transferred_bytes: int = 0,
    uptime_s: float = 0.0,
    memory_free_bytes: int = 0,
    disk_free_bytes: int = 0,
    cores: int | None = None,
) -> Literal["ok", "stop", "halt"]:
    """Record a sign of life, and tell the VM what to do: "stop" if STOPPING, "halt" if HALTED.

    `transferred_*` are counted since the VM's agent began. A STALLED VM comes back to RUNNING if
    it was not replaced. Raises InstanceNotFound, BadInput.
    """
    beat = {
        "vm_id": vm_id,
        "load": _real("load", load),
        "running_jobs": whole("jobs", jobs, least=0, most=2**31 - 1),
        "transferred_files": whole("transferred_files", transferred_files, least=0, most=_MOST),
        "transferred_bytes": whole("transferred_bytes", transferred_bytes, least=0, most=_MOST),
        "uptime_s": _real("uptime_s", uptime_s),
        "memory_free_bytes": whole("memory_free_bytes", memory_free_bytes, least=0, most=_MOST),
        "disk_free_bytes": whole("disk_free_bytes", disk_free_bytes, least=0, most=_MOST),
        "cores": None if cores is None else whole("cores", cores, least=1, most=2**31 - 1),
    }
    found = _vm(connection, vm_id)
    orders = watches.record_heartbeats(connection, [beat])
    if vm_id in orders:
        return orders[vm_id]
    if found["state"] == VmState.STALLED and not found["replaced"] and found["running_at"]:
        move_vm(connection, vm_id, VmState.RUNNING, allowed=[VmState.STALLED])
    return "ok"


def _vm(connection: Connection, vm_id: int) -> Mapping[str, Any]:
    found = rows(connection, "SELECT * FROM vms WHERE id = :id FOR NO KEY UPDATE", id=vm_id)
    if not found:
        raise InstanceNotFound(f"there is no VM {vm_id}")
    return found[0]


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _real(what: str, value: object) -> float:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
    if not 0 <= number < 1e15:
        raise BadInput(f"{what} must be a number of at least 0, not {shown(value)}")
    return float(number)
