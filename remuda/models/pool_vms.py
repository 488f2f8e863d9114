"""The VMs of one pool by what their provider calls them: who is in, who comes in, who leaves."""

from __future__ import annotations

import uuid

from sqlalchemy import Connection, text

from remuda.errors import InstanceNotFound, UnknownPool
from remuda.models import declaring
from remuda.models.database import rows
from remuda.models.vm_life import insert_vms

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


def admit(
    connection: Connection,
    pool_id: int,
    provider_id: str,
    *,
    token: str,
    address: dict[str, object],
    private_ip: str | None,
    public_ip: str | None,
) -> None:
    """Take a machine in: as the intent of its token, or, if there is none, as a VM of its own.

    One that is in already is left as it is. Raises UnknownPool, BadInput, IllegalTransition when
    the VM of that token is past being made.
    """
    # Two who take in the same machine do so one after the other.
    locked = rows(
        connection, "SELECT id FROM pools WHERE id = :pool FOR NO KEY UPDATE", pool=pool_id
    )
    if not locked:
        raise UnknownPool(f"there is no pool with id {pool_id}")
    if is_member(connection, pool_id, provider_id):
        return
    known = _uuid(token)
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
    declaring.declare_submitted(
        connection,
        vm_id,
        provider_id=provider_id,
        address=address,
        private_ip=private_ip,
        public_ip=public_ip,
    )


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
