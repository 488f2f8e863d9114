"""What the steps of a VM's life read: rows with their pool's settings, unfinished VMs, tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.models import vm_life
from remuda.models.database import rows
from remuda.models.sql import RETURNS

# Longer than any step takes; then its message was lost or its worker died.
_OVERDUE = """
    (v.next_try_at IS NULL AND (
       (v.state = 'NEW' AND v.state_changed_at < now() - interval '10 seconds')
       OR (v.state = 'SUBMITTED' AND v.state_changed_at < now() - interval '20 seconds')
       OR (v.state IN ('WAIT_SSH_CONTEXT', 'CONTEXTUALIZING')
           AND v.state_changed_at < now() - interval '5 seconds')))
    OR (v.state IN ('STOPPING', 'ERROR') AND v.state_changed_at < now() - interval '5 seconds')
"""


def vm_with_pool(connection: Connection, vm_id: int) -> Mapping[str, Any] | None:
    """Return the VM's row with what its pool says of VMs."""
    found = rows(
        connection,
        """SELECT v.id, v.name, v.state, v.token, v.provider_id, v.slots, v.memory_bytes, v.pool_id,
                  v.address, v.facts, v.image_id, v.offer, v.launch_failures, v.spawn_calls,
                  v.provider_id IS NULL AND v.spawn_calls = v.empty_calls AS never_was,
                  coalesce(v.provider, p.provider) AS provider,
                  p.settings || v.offer_settings AS settings,
                  (SELECT (o ->> 'max_price')::float8 FROM jsonb_array_elements(p.offers) AS o
                   WHERE o ->> 'name' = v.offer) AS max_price,
                  p.uuid::text AS pool, p.name AS pool_name, p.heartbeat_s, p.backend,
                  p.reserved_group, v.reboot, v.boot, p.dead_man_s, p.dead_man_command, p.architecture,
                  p.memory_bytes_per_vm, p.constraints,
                  p.preparation, p.preparation_timeout_s, p.constants, p.gpus_per_vm, i.name AS image
           FROM vms v JOIN pools p ON p.id = v.pool_id JOIN images i ON i.id = v.image_id
           WHERE v.id = :vm""",
        vm=vm_id,
    )
    return found[0] if found else None


def provider_ids_of(
    connection: Connection, vm_ids: Sequence[int], pool_id: int, offer: str
) -> list[str]:
    """Return what their provider calls those of the VMs that are of the pool and offer."""
    found = rows(
        connection,
        """SELECT DISTINCT provider_id FROM vms WHERE id = ANY(:ids) AND pool_id = :pool
             AND offer = :offer AND provider_id IS NOT NULL ORDER BY 1""",
        ids=list(vm_ids),
        pool=pool_id,
        offer=offer,
    )
    return [row["provider_id"] for row in found]


def has_token(connection: Connection, vm_id: int, token: str) -> bool:
    """Lock the VM's row and return whether this is its token still."""
    found = connection.scalar(
        text("SELECT token::text FROM vms WHERE id = :vm FOR NO KEY UPDATE"), {"vm": vm_id}
    )
    return bool(found == token)


def vm_at(connection: Connection, vm_id: int, address: Mapping[str, Any]) -> str | None:
    """Return the name of another VM of the pool that is in use at this address; None: there is none.

    What has no `address` of the network cannot be the same.
    """
    if not address.get("address"):
        return None
    found = rows(
        connection,
        """SELECT other.name FROM vms v JOIN vms other ON other.pool_id = v.pool_id
           WHERE v.id = :vm AND other.id <> v.id AND other.provider_id IS NOT NULL
             AND other.state IN ('SUBMITTED', 'WAIT_SSH_CONTEXT', 'CONTEXTUALIZING', 'RUNNING')
             AND (other.address ->> 'address', coalesce(other.address ->> 'port', ''),
                  coalesce(other.address ->> 'jump', ''), coalesce(other.address ->> 'home', ''))
               = (:address, :port, :jump, :home)
           ORDER BY other.id LIMIT 1""",
        vm=vm_id,
        address=str(address["address"]),
        **{key: str(address.get(key) or "") for key in ("port", "jump", "home")},
    )
    return str(found[0]["name"]) if found else None


def set_place(
    connection: Connection,
    vm_id: int,
    *,
    address: Mapping[str, Any],
    private_ip: str | None,
    public_ip: str | None,
    promised: Mapping[str, int],
) -> None:
    """Record where a VM is that has not run yet, and what it is said to have."""
    connection.execute(
        text(
            """UPDATE vms SET address = CAST(:address AS jsonb), private_ip = :private,
                 public_ip = :public,
                 facts = facts || jsonb_build_object('promised', CAST(:promised AS jsonb))
               WHERE id = :vm
                 AND state IN ('SUBMITTED', 'WAIT_SSH_CONTEXT', 'CONTEXTUALIZING')"""
        ),
        {
            "vm": vm_id,
            "address": json.dumps(dict(address)),
            "private": private_ip,
            "public": public_ip,
            "promised": json.dumps(dict(promised)),
        },
    )


def set_preparation(connection: Connection, vm_id: int, result: Mapping[str, Any]) -> None:
    """Keep how the pool's preparation command went on the VM."""
    connection.execute(
        text("UPDATE vms SET preparation = CAST(:result AS jsonb) WHERE id = :vm"),
        {"vm": vm_id, "result": json.dumps(dict(result))},
    )


def set_facts(connection: Connection, vm_id: int, facts: Mapping[str, Any]) -> None:
    """Keep what was measured of the VM."""
    connection.execute(
        text("UPDATE vms SET facts = CAST(:facts AS jsonb) WHERE id = :vm"),
        {"vm": vm_id, "facts": json.dumps(dict(facts))},
    )


def end_reboot(connection: Connection, vm_id: int) -> None:
    """Record that the VM's reboot is over; it takes work again, unless it is to go anyway."""
    connection.execute(
        text(f"UPDATE vms v SET reboot = NULL, draining = NOT {RETURNS} WHERE id = :vm"),
        {"vm": vm_id},
    )


def unfinished_vms(connection: Connection) -> Sequence[Mapping[str, Any]]:
    """Return (id, state) of the VMs whose next step is overdue."""
    return rows(connection, f"SELECT v.id, v.state FROM vms v WHERE {_OVERDUE} ORDER BY v.id")


def note_unended(connection: Connection, vm_id: int, error: str) -> None:
    """Keep why the machine of a STOPPING VM is not gone yet, after what had gone wrong before."""
    connection.execute(
        text(
            f"""UPDATE vms SET error = concat_ws('; ', {vm_life.OWN_ERROR}, :error) WHERE id = :vm
                 AND state = 'STOPPING' AND error IS DISTINCT FROM :error"""
        ),
        {"vm": vm_id, "error": vm_life.UNENDED + error[:2000]},
    )


def stopping_vms(connection: Connection) -> list[int]:
    """Return the VMs that are to be terminated."""
    return [row["id"] for row in rows(connection, "SELECT id FROM vms WHERE state = 'STOPPING'")]


def providers_in_use(
    connection: Connection, pool_id: int | None = None
) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (provider, tag, settings) of the pool, or all that may still have machines, by offer.

    Machines are tagged with their pool's UUID: names repeat, also between databases. An offer that
    is not listed any more counts while there is a VM of it.
    """
    found = rows(
        connection,
        """WITH alive AS (
             SELECT * FROM pools WHERE CASE WHEN CAST(:pool AS bigint) IS NOT NULL THEN id = :pool
               ELSE state <> 'UNSUBMITTED'
                 AND (ended_at IS NULL OR ended_at > now() - interval '1 day') END)
           SELECT provider, uuid::text AS tag, settings FROM alive WHERE offers = '[]'
           UNION SELECT coalesce(o ->> 'provider', p.provider), p.uuid::text,
                        p.settings || coalesce(o -> 'settings', '{}')
                 FROM alive p CROSS JOIN jsonb_array_elements(p.offers) AS o
           UNION SELECT coalesce(v.provider, p.provider), p.uuid::text, p.settings || v.offer_settings
                 FROM vms v JOIN pools p ON p.id = v.pool_id WHERE v.state <> 'HALTED'
                   AND (CAST(:pool AS bigint) IS NULL OR p.id = :pool)
           ORDER BY 1, 2, 3""",
        pool=pool_id,
    )
    return [(row["provider"], row["tag"], row["settings"]) for row in found]
