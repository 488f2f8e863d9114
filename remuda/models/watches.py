"""Watches and heartbeats: which worker hears a VM, and what it heard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Connection, text

from remuda.models.database import rows
from remuda.models.states import NO_BACKEND

Order = Literal["stop", "halt"]

_COLUMNS = (
    "v.id, v.name, v.address, v.provider_id, v.journal_n, v.state, p.backend, p.id AS pool_id,"
    " coalesce(v.provider, p.provider) AS provider, p.dead_man_s, p.dead_man_command"
)

_CLAIM = f"""
    WITH free AS (
      SELECT id FROM vms
      WHERE state IN ('RUNNING', 'STALLED', 'CONTEXTUALIZING')
        AND (watch_expires_at IS NULL OR watch_expires_at < now() OR watcher = :worker)
        AND (CAST(:ids AS bigint[]) IS NULL OR id = ANY(:ids))
        AND pool_id NOT IN (SELECT id FROM pools WHERE backend = '{NO_BACKEND}')
      -- The worker's own come last, or they would take up the limit at every call.
      ORDER BY coalesce(watcher = :worker AND watch_expires_at >= now(), false), id
      LIMIT :most FOR NO KEY UPDATE SKIP LOCKED
    ), v AS (
      UPDATE vms SET watcher = :worker, watch_expires_at = now() + make_interval(secs => :ttl),
        watch_renewed_at = now(),
        -- A VM that was well when its last watcher was has not been silent: nobody listened.
        listening_since = CASE
          WHEN watcher IS DISTINCT FROM :worker AND (watch_renewed_at IS NULL
               OR watch_renewed_at - heartbeat_at < make_interval(secs => pools.stalling_interval_s))
          THEN now() ELSE listening_since END
      FROM free, pools WHERE vms.id = free.id AND pools.id = vms.pool_id RETURNING vms.*
    )
    SELECT {_COLUMNS} FROM v JOIN pools p ON p.id = v.pool_id
"""

_BEAT = {
    "load": "float8",
    "running_jobs": "int",
    "queued_jobs": "int",
    "cores": "int",
    "memory_free_bytes": "bigint",
    "disk_free_bytes": "bigint",
    "transferred_files": "bigint",
    "transferred_bytes": "bigint",
    "uptime_s": "float8",
}
_KEPT = ("load", "cores", "uptime_s", "transferred_files", "transferred_bytes")  # in the VM's row

# One that is HALTED is heard too: it should not live, and whoever hears it must know.
_HEARD = text(f"""
    WITH r AS (
      SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
        vm_id bigint, {", ".join(f"{name} {kind}" for name, kind in _BEAT.items())})
    ), v AS (
      UPDATE vms SET heartbeat_at = now(), {", ".join(f"{name} = r.{name}" for name in _KEPT)}
      FROM r WHERE vms.id = r.vm_id RETURNING vms.id, vms.state, vms.image_id
    ), i AS (
      UPDATE images SET state = 'VALIDATED', validated_at = now(), state_changed_at = now()
      WHERE state = 'NEW' AND id IN (SELECT image_id FROM v WHERE v.state = 'RUNNING')
    ), h AS (
      INSERT INTO heartbeats (vm_id, state, {", ".join(_BEAT)})
      SELECT v.id, v.state, {", ".join(f"r.{name}" for name in _BEAT)} FROM r JOIN v ON v.id = r.vm_id
    )
    SELECT id, state FROM v WHERE state IN ('STOPPING', 'HALTED')
""")
_NOTHING = {"cores": None, "queued_jobs": 0, "transferred_files": 0, "transferred_bytes": 0}
_ORDERS: dict[str, Order] = {"STOPPING": "stop", "HALTED": "halt"}


def claim_watches(
    connection: Connection,
    worker: str,
    *,
    ttl_s: float,
    vm_ids: Sequence[int] | None = None,
    most: int = 50,
) -> list[dict[str, Any]]:
    """Take the watch of up to `most` VMs nobody else watches (of `vm_ids`, if given); return them.

    Those the worker watches already are renewed and returned too, if the limit leaves room.
    """
    ids = list(vm_ids) if vm_ids is not None else None
    found = rows(connection, _CLAIM, worker=worker, ttl=ttl_s, ids=ids, most=most)
    return [dict(row) for row in found]


def renew_watches(
    connection: Connection, worker: str, vm_ids: Sequence[int], *, ttl_s: float
) -> set[int]:
    """Renew the worker's watches; return those it still holds."""
    statement = text("""
        UPDATE vms SET watch_renewed_at = now(),
               watch_expires_at = now() + make_interval(secs => :ttl)
        WHERE id = ANY(:ids) AND watcher = :worker RETURNING id""")
    return set(connection.scalars(statement, {"worker": worker, "ids": list(vm_ids), "ttl": ttl_s}))


def release_watches(connection: Connection, worker: str) -> None:
    """Give up all watches of the worker, so that others take them at once."""
    connection.execute(
        text("UPDATE vms SET watcher = NULL, watch_expires_at = NULL WHERE watcher = :worker"),
        {"worker": worker},
    )


def record_heartbeats(
    connection: Connection, beats: Sequence[Mapping[str, Any]]
) -> dict[int, Order]:
    """Record what VMs reported (the columns of `heartbeats`), one beat a VM, in one statement.

    The first of a RUNNING VM validates its image. Returns which VMs should not be alive: those to
    "stop" (STOPPING) and those to "halt" (HALTED); they were heard all the same.
    """
    if not beats:
        return {}
    ordered = sorted(({**_NOTHING, **beat} for beat in beats), key=lambda beat: beat["vm_id"])
    found = connection.execute(_HEARD, {"rows": json.dumps(ordered)}).mappings()
    return {row["id"]: _ORDERS[row["state"]] for row in found}


def note_contact(connection: Connection, vm_id: int) -> None:
    """Note that the VM's runner just answered its new watcher: a sign of life."""
    connection.execute(
        text("UPDATE vms SET heartbeat_at = now() WHERE id = :vm AND state <> 'HALTED'"),
        {"vm": vm_id},
    )


def call_watchers(connection: Connection) -> None:
    """Have every worker's watcher look for VMs nobody watches."""
    connection.execute(text("SELECT pg_notify('remuda_wake', 'watch')"))


def vm_name(connection: Connection, vm_id: int) -> str | None:
    """Return the name of a VM, whatever its state."""
    found = connection.scalar(text("SELECT name FROM vms WHERE id = :vm"), {"vm": vm_id})
    return None if found is None else str(found)


def vm_for_channel(connection: Connection, vm_id: int) -> dict[str, Any] | None:
    """Return what is needed to reach the VM; None when it is halted or was never made."""
    found = rows(
        connection,
        f"""SELECT {_COLUMNS} FROM vms v JOIN pools p ON p.id = v.pool_id
            WHERE v.id = :vm AND v.state NOT IN ('NEW', 'HALTED')""",
        vm=vm_id,
    )
    return dict(found[0]) if found else None
