"""Limits of VMs: how many may serve an owner, or a group, at once, in all pools and in each.

What counts are VMs bound to the owner, and those on which it has leases or live attempts, in every
state until their end is confirmed. What an owner's limit says is of the members of a group together,
if it is one: a VM that several of them use counts once. Whoever gives an owner with a limit, or whose
group has one, something on a VM holds their locks (advisory), so the count is exact, whether jobs or
leases are given out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from remuda.models.database import rows
from remuda.models.sql import READY
from remuda.owned_vms import OwnedVms, Party, VmLimit, group

_POOLS = "ANY(CAST(:pools AS bigint[]))"
_SAYS = f"""(EXISTS (SELECT FROM owners l WHERE l.id = {{whose}} AND l.max_vms IS NOT NULL)
    OR EXISTS (SELECT FROM quotas q WHERE q.owner_id = {{whose}} AND q.max_vms IS NOT NULL
                 AND q.pool_id = {_POOLS}))"""

# Whether a limit of VMs of its own, or of its group, says anything of an owner (o) in the pools.
_OWN = f"""({_SAYS.format(whose="o.id")}
    OR EXISTS (SELECT FROM pools p WHERE p.id = {_POOLS} AND p.max_vms_per_owner IS NOT NULL))"""
_GROUPS = f"(o.group_id IS NOT NULL AND {_SAYS.format(whose='o.group_id')})"
LIMITED = f"({_OWN} OR {_GROUPS})"

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

_PARTIES = f"""
    SELECT o.id, {_OWN} AS own, CASE WHEN {_GROUPS} THEN o.group_id END AS group_id
    FROM owners o WHERE o.id = ANY(:owners) AND {LIMITED} ORDER BY o.id
"""

# In the order given, which everybody's is: that of the ids.
_LOCK = """
    SELECT id, CASE WHEN :wait THEN remuda_lock_owner(id)::text IS NOT NULL
      ELSE pg_try_advisory_xact_lock(125534, (id % 2147483647)::int + 1) END AS held
    FROM unnest(CAST(:owners AS bigint[])) AS o(id)
"""

_VMS_OF = """
    SELECT x.owner_id, v.id AS vm_id, v.pool_id FROM (
      SELECT l.owner_id, l.vm_id FROM leases l
      WHERE l.owner_id = ANY(CAST(:owners AS bigint[])) AND l.released_at IS NULL
      UNION
      SELECT b.bound_owner_id, b.id FROM vms b
      WHERE b.bound_owner_id = ANY(CAST(:owners AS bigint[])) AND b.state <> 'HALTED') AS x
    JOIN vms v ON v.id = x.vm_id AND v.state <> 'HALTED'
"""

# Of the owners, and of their groups. `is_group`: it has members, and its limits are theirs together.
_LIMITS = f"""
    SELECT o.id, o.name, o.group_id, o.max_vms, p.id AS pool_id, p.name AS pool,
           p.max_vms_per_owner, q.max_vms AS own,
           EXISTS (SELECT FROM owners m WHERE m.group_id = o.id) AS is_group
    FROM owners o LEFT JOIN pools p ON p.id = {_POOLS}
    LEFT JOIN quotas q ON q.owner_id = o.id AND q.pool_id = p.id
    WHERE o.id IN (SELECT unnest(ARRAY[w.id, w.group_id]) FROM owners w
                   WHERE w.id = ANY(CAST(:owners AS bigint[])))
    ORDER BY o.id, p.id
"""

_MEMBERS = """
    SELECT id, coalesce(group_id, id) AS group_id FROM owners
    WHERE id = ANY(:groups) OR group_id = ANY(:groups)
"""


def lock(connection: Connection, pool_ids: Sequence[int], *, wait: bool = True) -> OwnedVms:
    """Lock those whose limit of VMs concerns jobs that wait in the pools; return what it leaves them.

    Unless told to `wait`, whom somebody else holds may have nothing, and `skipped` is told.
    """
    waiting = [row["id"] for row in rows(connection, _WAITING, pools=list(pool_ids))]
    return lock_owners(connection, waiting, pool_ids, wait=wait)[1] if waiting else OwnedVms()


def lock_owners(
    connection: Connection, owners: Sequence[int], pool_ids: Sequence[int], *, wait: bool = True
) -> tuple[dict[Party, VmLimit], OwnedVms]:
    """Lock those of the owners, and of their groups, that have a limit; return it, and what it leaves."""
    needed = {key for keys in _needed(connection, owners, pool_ids).values() for key in keys}
    if not needed:
        return {}, OwnedVms()
    found = rows(connection, _LOCK, owners=sorted(needed), wait=wait)
    held = {row["id"] for row in found if row["held"]}
    # A statement of its own: the count sees what the locks' last holders did.
    limited, group_of = limits(connection, owners, pool_ids)
    owned = _left(connection, limited, group_of)
    for owner in owned.owners():
        if any(abs(party) not in held for party in owned.parties(owner)):
            # Held by another, or of a group that it joined just now.
            owned.has[owner] = set()
            owned.left[owner, None] = 0
            owned.skipped = True
    return limited, owned


def _needed(
    connection: Connection, owners: Collection[int], pool_ids: Sequence[int]
) -> dict[int, set[int]]:
    """Return whose locks it takes to give those of the owners something who are limited."""
    found = rows(connection, _PARTIES, owners=sorted(owners), pools=list(pool_ids))
    return {
        row["id"]: ({row["id"]} if row["own"] else set())
        | (set() if row["group_id"] is None else {row["group_id"]})
        for row in found
    }


def late(
    connection: Connection, owners: Collection[int], pool_ids: Sequence[int], owned: OwnedVms
) -> set[int]:
    """Return which of the owners are under a limit that is not in `owned`: they came since."""
    needed = _needed(connection, owners, pool_ids) if owners else {}
    return {
        owner
        for owner, keys in needed.items()
        if not keys <= {abs(party) for party in owned.parties(owner)}
    }


def rooms(
    connection: Connection, pool_ids: Sequence[int], *, besides: Collection[int] = ()
) -> OwnedVms:
    """Return what limits leave just now to owners whose jobs wait in the pools, and to those `besides`."""
    waiting = {row["id"] for row in rows(connection, _WAITING, pools=list(pool_ids))}
    return of(connection, sorted(waiting.union(besides)), pool_ids)


def of(connection: Connection, owners: Sequence[int], pool_ids: Sequence[int]) -> OwnedVms:
    """Return what the owners and their groups have, and what limits leave them, in all and in pools."""
    return _left(connection, *limits(connection, owners, pool_ids))


def _left(
    connection: Connection, limited: Mapping[Party, VmLimit], group_of: Mapping[int, int]
) -> OwnedVms:
    owned = OwnedVms({party: set() for party in limited}, group_of=group_of)
    groups = sorted(-party for party in limited if party < 0)
    parties: dict[int, list[Party]] = {party: [party] for party in limited if party > 0}
    for row in rows(connection, _MEMBERS, groups=groups) if groups else ():
        parties.setdefault(row["id"], []).append(group(row["group_id"]))
    there: dict[tuple[Party, int], set[int]] = defaultdict(set)
    for row in rows(connection, _VMS_OF, owners=sorted(parties)) if parties else ():
        for party in parties[row["owner_id"]]:
            owned.has[party].add(row["vm_id"])
            there[party, row["pool_id"]].add(row["vm_id"])
    for party, limit in limited.items():
        if limit.most is not None:
            owned.left[party, None] = limit.most - len(owned.has[party])
        for pool, most in limit.pools.items():
            owned.left[party, pool] = most - len(there[party, pool])
    return owned


def limits(
    connection: Connection, owners: Sequence[int], pool_ids: Sequence[int]
) -> tuple[dict[Party, VmLimit], dict[int, int]]:
    """Return the limits of the owners and of their groups, and who of them is in a group with one."""
    if not owners:
        return {}, {}
    wanted = set(owners)
    found: dict[Party, VmLimit] = {}
    group_of: dict[int, int | None] = {}
    for row in rows(connection, _LIMITS, owners=list(owners), pools=list(pool_ids)):
        if row["id"] in wanted:
            group_of[row["id"]] = row["id"] if row["is_group"] else row["group_id"]
            _add(found, row["id"], row, shared=False, own=not row["is_group"])
        if row["is_group"]:
            _add(found, group(row["id"]), row, shared=True, own=True)
    return found, {
        one: leader
        for one, leader in group_of.items()
        if leader is not None and group(leader) in found
    }


def _add(
    found: dict[Party, VmLimit], party: Party, row: Mapping[str, Any], *, shared: bool, own: bool
) -> None:
    """Note what a row says of a party: `own` limits; what a pool lets everybody have, if not `shared`."""
    total, mine = (row["max_vms"], row["own"]) if own else (None, None)
    everybodys = None if shared else row["max_vms_per_owner"]
    most = min((each for each in (mine, everybodys) if each is not None), default=None)
    if total is None and most is None:
        return
    limit = found.setdefault(party, VmLimit(row["name"], shared, total))
    if most is not None:
        limit.pools[row["pool_id"]] = most
        if most == mine:
            limit.own.add(row["pool_id"])
