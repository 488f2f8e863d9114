"""Owners: their weights and groups, what each may have, and has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import Refused
from remuda.models import quotas, usage
from remuda.models.database import rows
from remuda.models.submit import owner_id


def change(
    connection: Connection, name: str, changes: Mapping[str, Any], *, pool_id: int | None = None
) -> None:
    """Set what is given of an owner, made when new; quotas in the pool, if given.

    Raises Refused when a group would be in a group.
    """
    owner = owner_id(connection, name)
    in_pool = {"max_slots", "max_queued"} | (set() if pool_id is None else {"max_vms"})
    for column in changes.keys() & {"weight", "max_vms", "max_pools"} - in_pool:
        connection.execute(
            text(f"UPDATE owners SET {column} = :value WHERE id = :id"),
            {"value": changes[column], "id": owner},
        )
    if "group" in changes:
        _join(connection, owner, name, changes["group"])
    limits = {key: changes[key] for key in changes.keys() & in_pool}
    if limits:
        quotas.change(connection, owner, pool_id, limits)
    connection.execute(
        text("SELECT pg_notify('remuda_wake', 'dispatch'), pg_notify('remuda_wake', 'lease')")
    )


def _join(connection: Connection, owner: int, name: str, group: str | None) -> None:
    group_id = None if group is None else owner_id(connection, group)
    # Both rows: neither may become a member, or get one, meanwhile.
    found = {
        row["id"]: row
        for row in rows(
            connection,
            """SELECT id, group_id FROM owners WHERE id = ANY(:ids) ORDER BY id FOR UPDATE""",
            ids=[owner, owner if group_id is None else group_id],
        )
    }
    if group_id is not None:
        has_members = _has_members(connection, owner)
        if has_members or group_id == owner or found[group_id]["group_id"] is not None:
            who = (
                f"{name} has members" if has_members else f"{group} is {name} or in a group itself"
            )
            raise Refused(
                f"owner {name} cannot be in group {group}: {who}",
                hint="groups have one level: owners in a group",
            )
    connection.execute(
        text("UPDATE owners SET group_id = :group WHERE id = :id"),
        {"group": group_id, "id": owner},
    )


def _has_members(connection: Connection, owner: int) -> bool:
    found = rows(connection, "SELECT id FROM owners WHERE group_id = :id LIMIT 1", id=owner)
    return bool(found)


_LISTING = """
    SELECT o.id, o.name, o.weight, g.name AS "group", o.max_vms, o.max_pools,
           (SELECT count(*) FROM pools p WHERE p.owner_id = o.id
              AND p.state <> 'PENDING_DELETE')::int AS pools,
           (SELECT count(*) FROM owners m WHERE m.group_id = o.id)::int AS members,
           coalesce(u.vms, 0)::int AS vms,
           (SELECT count(*) FROM leases l WHERE l.owner_id = o.id AND l.released_at IS NULL
              AND NOT l.for_jobs)::int AS leases,
           (SELECT count(*) FROM lease_requests q WHERE q.owner_id = o.id
              AND q.lease_id IS NULL AND NOT q.refused AND q.expires_at > now())::int AS waiting,
           coalesce(j.queued, 0)::int AS queued, coalesce(j.slots, 0)::int AS slots
    FROM owners o LEFT JOIN owners g ON g.id = o.group_id LEFT JOIN (
      SELECT owner_id, count(*) FILTER (WHERE state = 'NEW') AS queued,
             sum(cores) FILTER (WHERE state NOT IN ('NEW', 'TERMINATING')) AS slots
      FROM jobs WHERE state <> 'TERMINATED' GROUP BY 1) AS j ON j.owner_id = o.id
    LEFT JOIN (
      SELECT w.party_id, count(DISTINCT x.vm_id) AS vms FROM (
        SELECT owner_id, vm_id FROM leases WHERE released_at IS NULL
        UNION SELECT bound_owner_id, id FROM vms
        WHERE bound_owner_id IS NOT NULL AND state <> 'HALTED') AS x
      JOIN vms v ON v.id = x.vm_id AND v.state <> 'HALTED'
      JOIN (SELECT id AS owner_id, id AS party_id FROM owners
            UNION SELECT id, group_id FROM owners WHERE group_id IS NOT NULL) AS w USING (owner_id)
      GROUP BY 1) AS u ON u.party_id = o.id
    ORDER BY o.name
"""


def listing(connection: Connection, *, half_life_s: float) -> list[dict[str, Any]]:
    """Return the owners by name: weight, group, limits and quotas, and what they use and wait for.

    `vms`: of a group those of all its members. `usage_slot_s`: slot-seconds, half of which are
    forgotten after each half-life.
    """
    limits = quotas.listing(connection)
    used = usage.shares(connection, half_life_s=half_life_s).owners
    return [
        {
            **{key: row[key] for key in row if key != "id"},
            "usage_slot_s": used[row["id"]].usage_s,
            "quotas": limits.get(row["id"], []),
        }
        for row in rows(connection, _LISTING)
    ]
