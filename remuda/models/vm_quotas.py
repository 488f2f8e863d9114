"""Limits of VMs: how many may serve an owner at once, in all pools and in each.

What counts are VMs bound to the owner, and those on which it has leases or live attempts, in every
state until their end is confirmed. Whoever gives an owner with a limit something on a VM holds its
lock (advisory), so the count is exact, whether jobs or leases are given out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from remuda.models.database import rows
from remuda.models.jobs import READY
from remuda.owned_vms import OwnedVms

# Whether a limit of VMs says anything of an owner (o) in the pools.
LIMITED = """(o.max_vms IS NOT NULL
    OR EXISTS (SELECT FROM quotas q WHERE q.owner_id = o.id AND q.max_vms IS NOT NULL
                 AND q.pool_id = ANY(CAST(:pools AS bigint[])))
    OR EXISTS (SELECT FROM pools p WHERE p.id = ANY(CAST(:pools AS bigint[]))
                 AND p.max_vms_per_owner IS NOT NULL))"""

# Whether there is any limit of VMs at all.
ANY = """(EXISTS (SELECT FROM owners WHERE max_vms IS NOT NULL)
    OR EXISTS (SELECT FROM quotas WHERE max_vms IS NOT NULL)
    OR EXISTS (SELECT FROM pools WHERE max_vms_per_owner IS NOT NULL))"""

_WAITING = f"""
    SELECT o.id FROM owners o CROSS JOIN unnest(CAST(:pools AS bigint[])) AS w(id)
    WHERE {ANY} AND {LIMITED} AND (
      EXISTS (SELECT FROM jobs j WHERE j.pool_id = w.id AND j.owner_id = o.id AND {READY})
      OR EXISTS (SELECT FROM jobs j WHERE j.owner_id = o.id AND j.pool_ids IS NOT NULL
                   AND j.pool_ids @> ARRAY[w.id] AND {READY}))
    GROUP BY o.id ORDER BY o.id
"""

_AMONG = f"SELECT o.id FROM owners o WHERE o.id = ANY(:owners) AND {LIMITED} ORDER BY o.id"

# In the order given, which everybody's is: that of the ids.
_LOCK = """
    SELECT id, CASE WHEN :wait THEN remuda_lock_owner(id)::text IS NOT NULL
      ELSE pg_try_advisory_xact_lock(125534, (id % 2147483647)::int + 1) END AS held
    FROM unnest(CAST(:owners AS bigint[])) AS o(id)
"""

VMS_OF = """
    SELECT o.id AS owner_id, v.id AS vm_id, v.pool_id
    FROM unnest(CAST(:owners AS bigint[])) AS o(id)
    JOIN vms v ON v.state <> 'HALTED' AND (v.bound_owner_id = o.id OR v.id IN (
      SELECT l.vm_id FROM leases l WHERE l.owner_id = o.id AND l.released_at IS NULL))
"""

_LIMITS = """
    SELECT o.id, o.name, o.max_vms, p.id AS pool_id, p.name AS pool,
           least(p.max_vms_per_owner, q.max_vms) AS most, q.max_vms AS own
    FROM owners o LEFT JOIN pools p ON p.id = ANY(CAST(:pools AS bigint[]))
    LEFT JOIN quotas q ON q.owner_id = o.id AND q.pool_id = p.id
    WHERE o.id = ANY(CAST(:owners AS bigint[])) ORDER BY o.id, p.id
"""


def lock(connection: Connection, pool_ids: Sequence[int], *, wait: bool = True) -> OwnedVms:
    """Lock the owners with a limit of VMs whose jobs wait in the pools; return what it leaves them.

    Unless told to `wait`, an owner that somebody else holds may have nothing, and `skipped` is told.
    """
    owners = [row["id"] for row in rows(connection, _WAITING, pools=list(pool_ids))]
    if not owners:
        return OwnedVms()
    found = rows(connection, _LOCK, owners=owners, wait=wait)
    held = [row["id"] for row in found if row["held"]]
    # A statement of its own: the count sees what the locks' last holders did.
    owned = of(connection, held, pool_ids)
    for owner in set(owners) - set(held):
        owned.has[owner] = set()
        owned.left[owner, None] = 0
        owned.skipped = True
    return owned


def late(
    connection: Connection, owners: Collection[int], pool_ids: Sequence[int], owned: OwnedVms
) -> set[int]:
    """Return which of the owners have a limit and are not in `owned`: their jobs came since."""
    unknown = sorted(set(owners) - owned.has.keys())
    if not unknown:
        return set()
    return {row["id"] for row in rows(connection, _AMONG, owners=unknown, pools=list(pool_ids))}


def rooms(connection: Connection, pool_ids: Sequence[int]) -> OwnedVms:
    """Return what their limits leave just now to owners whose jobs wait in the pools."""
    owners = [row["id"] for row in rows(connection, _WAITING, pools=list(pool_ids))]
    return of(connection, owners, pool_ids)


def of(connection: Connection, owners: Sequence[int], pool_ids: Sequence[int]) -> OwnedVms:
    """Return what the owners have, and what their limits leave them, in all and in the pools."""
    owned = OwnedVms({owner: set() for owner in owners})
    if not owners:
        return owned
    there = rows(connection, VMS_OF, owners=list(owners))
    for row in there:
        owned.has[row["owner_id"]].add(row["vm_id"])
    for limit in limits(connection, owners, pool_ids):
        if limit["max_vms"] is not None:
            owned.left[limit["id"], None] = limit["max_vms"] - len(owned.has[limit["id"]])
        if limit["most"] is not None:
            here = [
                v for v in there if (v["owner_id"], v["pool_id"]) == (limit["id"], limit["pool_id"])
            ]
            owned.left[limit["id"], limit["pool_id"]] = limit["most"] - len(here)
    return owned


def limits(
    connection: Connection, owners: Sequence[int], pool_ids: Sequence[int]
) -> Sequence[Mapping[str, Any]]:
    """Return the limits of each owner (id, name, max_vms), by pool (`most`; `own`: not the pool's)."""
    return rows(connection, _LIMITS, owners=list(owners), pools=list(pool_ids))
