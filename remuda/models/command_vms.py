"""The book of the `command` provider: its VMs with their numbers, counters and what hooks said.

It is the provider's own, beside the `vms` of pools: hooks may have made what no row of those owns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows

_LOCK = 0x636F6D6D  # of all who give out numbers; held for one short transaction


@dataclass(frozen=True, slots=True)
class Entry:
    """A VM in the book."""

    id: int
    provider_id: str
    token: str
    pool: str
    number: int
    state: str
    output: str
    counters: Mapping[str, int]


_ENTRY = """
    SELECT v.id, v.provider_id, v.token, v.pool, v.number, v.state, v.output,
           coalesce((SELECT jsonb_object_agg(c.name, c.value) FROM command_counters c
                     WHERE c.command_vm_id = v.id), '{}') AS counters
    FROM command_vms v
"""


def enter(
    connection: Connection, provider_id: str, *, token: str, pool: str, counters: Sequence[str]
) -> Entry:
    """Return the VM of this token, entered now with free numbers if it is new."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    known = find(connection, token=token)
    if known:
        return known[0]
    made = connection.scalar(
        text(
            """INSERT INTO command_vms (provider_id, token, pool, number)
               SELECT :id, :token, :pool, min(n) FROM generate_series(0,
                 (SELECT count(*) FROM command_vms WHERE pool = :pool)) AS n
               WHERE n NOT IN (SELECT number FROM command_vms WHERE pool = :pool) RETURNING id"""
        ),
        {"id": provider_id, "token": token, "pool": pool},
    )
    for name in counters:
        connection.execute(
            text(
                """INSERT INTO command_counters (name, value, command_vm_id)
                   SELECT :name, min(n), :vm FROM generate_series(0,
                     (SELECT count(*) FROM command_counters WHERE name = :name)) AS n
                   WHERE n NOT IN (SELECT value FROM command_counters WHERE name = :name)"""
            ),
            {"name": name, "vm": made},
        )
    return find(connection, token=token)[0]


def find(
    connection: Connection,
    *,
    token: str | None = None,
    pool: str | None = None,
    provider_ids: Sequence[str] | None = None,
) -> list[Entry]:
    """Return the VMs in the book that meet every condition given, oldest first."""
    found = rows(
        connection,
        f"""{_ENTRY} WHERE (CAST(:token AS text) IS NULL OR v.token = :token)
              AND (CAST(:pool AS text) IS NULL OR v.pool = :pool)
              AND (CAST(:ids AS text[]) IS NULL OR v.provider_id = ANY(:ids)) ORDER BY v.id""",
        token=token,
        pool=pool,
        ids=None if provider_ids is None else list(provider_ids),
    )
    return [Entry(**row) for row in found]


def hold(
    connection: Connection, vm_id: int, holder: str, *, seconds: float, state: str | None = None
) -> Entry | None:
    """Have `holder` alone run hooks on the VM for so long; None while another does, or it is gone.

    `state`: brings it there. It is returned as it was found before.
    """
    values: dict[str, Any] = {"vm": vm_id, "holder": holder, "seconds": seconds, "state": state}
    locked = connection.scalar(
        text(
            """SELECT id FROM command_vms WHERE id = :vm
                 AND (held_until IS NULL OR held_until < now() OR held_by = :holder) FOR UPDATE"""
        ),
        values,
    )
    if locked is None:
        return None
    found = rows(connection, f"{_ENTRY} WHERE v.id = :vm", vm=vm_id)
    connection.execute(
        text(
            """UPDATE command_vms SET held_by = :holder, state = coalesce(:state, state),
                 held_until = now() + make_interval(secs => :seconds) WHERE id = :vm"""
        ),
        values,
    )
    return Entry(**found[0])


def exists(connection: Connection, vm_id: int) -> bool:
    """Return whether the VM is in the book."""
    found = connection.scalar(text("SELECT 1 FROM command_vms WHERE id = :vm"), {"vm": vm_id})
    return found is not None


def let_go(connection: Connection, vm_id: int, holder: str, *, output: str | None = None) -> bool:
    """End the hold; with `output` the VM is made, and that is what its hook said.

    Returns False when the hold had ended before, and changes nothing then.
    """
    done = connection.execute(
        text(
            """UPDATE command_vms SET held_by = NULL, held_until = NULL,
                 output = coalesce(:output, output),
                 state = CASE WHEN CAST(:output AS text) IS NULL THEN state ELSE 'made' END
               WHERE id = :vm AND held_by = :holder"""
        ),
        {"vm": vm_id, "holder": holder, "output": output},
    )
    return done.rowcount == 1


def strike_out(connection: Connection, vm_id: int, holder: str) -> bool:
    """Remove a VM that is confirmed gone, its numbers free again; False if the hold had ended."""
    done = connection.execute(
        text("DELETE FROM command_vms WHERE id = :vm AND held_by = :holder"),
        {"vm": vm_id, "holder": holder},
    )
    return done.rowcount == 1
