"""What the steps of a VM's life read: rows with their pool's settings, unfinished VMs, tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows

# Longer than any step takes; then its message was lost or its worker died.
_OVERDUE = """
    (v.state = 'NEW' AND v.state_changed_at < now() - interval '10 seconds')
    OR (v.state = 'SUBMITTED' AND v.state_changed_at < now() - interval '20 seconds')
    OR (v.state IN ('WAIT_SSH_CONTEXT', 'CONTEXTUALIZING')
        AND v.state_changed_at < now() - interval '5 seconds')
    OR (v.state IN ('STOPPING', 'ERROR') AND v.state_changed_at < now() - interval '5 seconds')
"""


def vm_with_pool(connection: Connection, vm_id: int) -> Mapping[str, Any] | None:
    """Return the VM's row with what its pool says of VMs."""
    found = rows(
        connection,
        """SELECT v.id, v.name, v.state, v.token, v.provider_id, v.slots, v.memory_bytes, v.pool_id,
                  p.uuid::text AS pool, p.name AS pool_name, p.provider, p.settings, p.heartbeat_s,
                  p.preparation, p.preparation_timeout_s, p.constants, p.gpus_per_vm, i.name AS image
           FROM vms v JOIN pools p ON p.id = v.pool_id JOIN images i ON i.id = v.image_id
           WHERE v.id = :vm""",
        vm=vm_id,
    )
    return found[0] if found else None


def note_spawn(connection: Connection, vm_id: int) -> bool:
    """Count that the provider is about to be asked for a NEW VM; False if it is not NEW any more."""
    counted = connection.execute(
        text("UPDATE vms SET spawn_calls = spawn_calls + 1 WHERE id = :vm AND state = 'NEW'"),
        {"vm": vm_id},
    )
    return counted.rowcount == 1


def spawned_once(connection: Connection, vm_id: int) -> bool:
    """Return whether the provider was asked for the VM just once; its row must be locked."""
    found = connection.scalar(text("SELECT spawn_calls FROM vms WHERE id = :vm"), {"vm": vm_id})
    return bool(found == 1)


def set_preparation(connection: Connection, vm_id: int, result: Mapping[str, Any]) -> None:
    """Keep how the pool's preparation command went on the VM."""
    connection.execute(
        text("UPDATE vms SET preparation = CAST(:result AS jsonb) WHERE id = :vm"),
        {"vm": vm_id, "result": json.dumps(dict(result))},
    )


def unfinished_vms(connection: Connection) -> Sequence[Mapping[str, Any]]:
    """Return (id, state) of the VMs whose next step is overdue."""
    return rows(connection, f"SELECT v.id, v.state FROM vms v WHERE {_OVERDUE} ORDER BY v.id")


def stopping_vms(connection: Connection) -> list[int]:
    """Return the VMs that are to be terminated."""
    return [row["id"] for row in rows(connection, "SELECT id FROM vms WHERE state = 'STOPPING'")]


def providers_in_use(connection: Connection) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (provider, tag, settings) of the pools that may still have machines.

    Machines are tagged with their pool's UUID: names repeat, also between databases.
    """
    found = rows(
        connection,
        """SELECT provider, uuid::text AS tag, settings FROM pools
           WHERE state <> 'UNSUBMITTED' AND (ended_at IS NULL OR ended_at > now() - interval '1 day')
           ORDER BY 1, 2""",
    )
    return [(row["provider"], row["tag"], row["settings"]) for row in found]


def live_tokens(connection: Connection, tokens: Sequence[str]) -> set[str]:
    """Return which of the tokens belong to a VM that is not HALTED."""
    found = rows(
        connection,
        """SELECT token::text AS token FROM vms
           WHERE token = ANY(CAST(:tokens AS uuid[])) AND state <> 'HALTED'""",
        tokens=list(tokens),
    )
    return {row["token"] for row in found}
