"""Owners: how many VMs each may have, and has."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows
from remuda.models.submit import owner_id


def set_max_vms(connection: Connection, name: str, max_vms: int | None) -> None:
    """Set how many VMs may serve an owner, made when new, before it gets no more by leases."""
    connection.execute(
        text("UPDATE owners SET max_vms = :most WHERE id = :id"),
        {"most": max_vms, "id": owner_id(connection, name)},
    )
    connection.execute(text("SELECT pg_notify('remuda_wake', 'lease')"))


def listing(connection: Connection) -> list[dict[str, Any]]:
    """Return the owners by name: limit, VMs that serve them, leases, requests that wait."""
    found = rows(
        connection,
        """SELECT o.name, o.max_vms,
                  coalesce((SELECT sum(c.count) FROM remuda_vms_of(ARRAY[o.id]) c), 0)::int AS vms,
                  (SELECT count(*) FROM leases l WHERE l.owner_id = o.id AND l.released_at IS NULL
                     AND NOT l.for_jobs)::int AS leases,
                  (SELECT count(*) FROM lease_requests q WHERE q.owner_id = o.id
                     AND q.lease_id IS NULL AND NOT q.refused AND q.expires_at > now())::int
                    AS waiting
           FROM owners o ORDER BY o.name""",
    )
    return [dict(row) for row in found]
