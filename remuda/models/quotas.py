"""Quotas: how many slots and waiting jobs owners, and the members of groups together, may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import Refused
from remuda.models.database import rows

Key = tuple[int, int | None]  # (owner or group, pool; None: all of them)


@dataclass(frozen=True, slots=True)
class QuotaRoom:
    """How many more slots owners and groups may have.

    `group_of`: the group of owners in one; `members`: all whom a quota limits; `skipped`: the quotas
    under which somebody else just places jobs, and that leave room for more.
    """

    left: dict[Key, int] = field(default_factory=dict)
    group_of: Mapping[int, int] = field(default_factory=dict)
    members: Sequence[int] = ()
    skipped: frozenset[Key] = frozenset()

    def is_skipped(self, owner_id: int, pool_id: int | None) -> bool:
        """Return whether a quota of the owner is just in other hands."""
        parties = {owner_id, self.group_of.get(owner_id, owner_id)}
        return any((party, pool) in self.skipped for party in parties for pool in (None, pool_id))

    def of(self, owner_id: int, pool_id: int | None) -> int | None:
        """Return the slots left to an owner in a pool; None: no quota says anything."""
        keys = self._keys(owner_id, pool_id)
        return min((self.left[key] for key in keys), default=None)

    def take(self, owner_id: int, pool_id: int, *, count: int, cores: int) -> int:
        """Return how many of `count` jobs the owner may have, and count their slots."""
        left = self.of(owner_id, pool_id)
        if left is None:
            return count
        count = max(0, min(count, left // cores))
        for key in self._keys(owner_id, pool_id):
            self.left[key] -= count * cores
        return count

    def _keys(self, owner_id: int, pool_id: int | None) -> list[Key]:
        parties = {owner_id, self.group_of.get(owner_id, owner_id)}
        keys = {(party, pool) for party in parties for pool in (None, pool_id)}
        return [key for key in keys if key in self.left]


# Of these owners, or of their groups, in these pools.
_OF_OWNERS = """
    SELECT q.id, q.owner_id, q.pool_id, q.max_slots FROM quotas q
    WHERE q.max_slots IS NOT NULL AND (q.pool_id IS NULL OR q.pool_id = ANY(:pools))
      AND q.owner_id IN (SELECT id FROM owners WHERE id = ANY(:owners)
                         UNION SELECT group_id FROM owners WHERE id = ANY(:owners))
    ORDER BY q.id
"""

_MEMBERS = """
    SELECT id, coalesce(group_id, id) AS party_id FROM owners
    WHERE id = ANY(:parties) OR group_id = ANY(:parties)
"""

_USED = """
    SELECT l.owner_id, v.pool_id, sum(a.cores)::int AS slots
    FROM leases l JOIN vms v ON v.id = l.vm_id
    JOIN attempts a ON a.vm_id = l.vm_id AND a.lease_id = l.id AND a.state IN ('PLACED', 'STARTED')
    WHERE l.for_jobs AND l.released_at IS NULL AND l.owner_id = ANY(:owners) GROUP BY 1, 2
"""


def lock(
    connection: Connection, owner_ids: Iterable[int], pool_ids: Sequence[int], *, wait: bool = True
) -> QuotaRoom:
    """Lock the quotas of slots of the owners, and of their groups, in the pools; return what they leave.

    Who holds a quota alone places jobs under it, so that it is never exceeded. Unless told to `wait`,
    what somebody else holds leaves nothing, and is among `skipped` if it may leave something.
    """
    whose: dict[str, Any] = {"owners": list(owner_ids), "pools": list(pool_ids)}
    skipped: Sequence[Mapping[str, Any]] = ()
    if wait:
        found = rows(connection, f"{_OF_OWNERS} FOR NO KEY UPDATE OF q", **whose)
    else:
        found = rows(connection, f"{_OF_OWNERS} FOR NO KEY UPDATE OF q SKIP LOCKED", **whose)
        held = {row["id"] for row in found}
        skipped = [r for r in rows(connection, _OF_OWNERS, **whose) if r["id"] not in held]
    # A statement of its own: the count sees what the last holder of the locks placed.
    room = _room(connection, [*found, *skipped])
    keys = [(row["owner_id"], row["pool_id"]) for row in skipped]
    worth_it = frozenset(key for key in keys if room.left[key] > 0)
    room.left.update(dict.fromkeys(keys, 0))
    return replace(room, skipped=worth_it)


def rooms(connection: Connection) -> QuotaRoom:
    """Return what all quotas of slots leave just now."""
    return _room(
        connection,
        rows(
            connection,
            "SELECT owner_id, pool_id, max_slots FROM quotas WHERE max_slots IS NOT NULL",
        ),
    )


def _room(connection: Connection, found: Sequence[Mapping[str, Any]]) -> QuotaRoom:
    if not found:
        return QuotaRoom()
    parties = sorted({row["owner_id"] for row in found})
    members = rows(connection, _MEMBERS, parties=parties)
    group_of = {row["id"]: row["party_id"] for row in members if row["party_id"] != row["id"]}
    left: dict[Key, int] = {(row["owner_id"], row["pool_id"]): row["max_slots"] for row in found}
    for row in rows(connection, _USED, owners=[member["id"] for member in members]):
        for party in {row["owner_id"], group_of.get(row["owner_id"], row["owner_id"])}:
            for pool in (None, row["pool_id"]):
                if (party, pool) in left:
                    left[party, pool] -= row["slots"]
    return QuotaRoom(left, group_of, [member["id"] for member in members])


# Of jobs that are not on machines: they may wait for slots, for other jobs, or to be resumed.
_QUEUED = """
    SELECT q.pool_id, q.max_queued, o.name, p.name AS pool, (
      SELECT count(*) FROM owners m JOIN jobs j ON j.owner_id = m.id
      WHERE (m.id = q.owner_id OR m.group_id = q.owner_id) AND j.state = 'NEW'
        AND j.pool_id = ANY(CASE WHEN q.pool_id IS NULL THEN ARRAY(SELECT id FROM pools)
                            ELSE ARRAY[q.pool_id] END)) AS queued
    FROM quotas q JOIN owners o ON o.id = q.owner_id LEFT JOIN pools p ON p.id = q.pool_id
    WHERE q.max_queued IS NOT NULL AND (q.pool_id IS NULL OR q.pool_id = :pool)
      AND q.owner_id IN (SELECT id FROM owners WHERE id = :owner
                         UNION SELECT group_id FROM owners WHERE id = :owner)
    ORDER BY q.id
"""

# Not the quotas' rows: a producer's own transaction must not hold up the dispatchers.
_LOCK_QUEUES = text("""
    SELECT pg_advisory_xact_lock(125535, (party % 2147483647)::int) FROM (
      SELECT DISTINCT coalesce(group_id, id) AS party FROM owners WHERE id = :owner) AS parties
""")


def refuse_over_queue(connection: Connection, owner: int, pool_id: int, count: int) -> None:
    """Raise Refused, naming the quota, if `count` jobs more would be more than may wait.

    Submissions of one owner or group take turns from here on until their transactions end.
    """
    connection.execute(_LOCK_QUEUES, {"owner": owner})
    for row in rows(connection, _QUEUED, owner=owner, pool=pool_id):
        if row["queued"] + count > row["max_queued"]:
            where = "" if row["pool"] is None else f" in pool {row['pool']}"
            raise Refused(
                f"owner {row['name']} may have {row['max_queued']} jobs waiting{where} "
                f"(max_queued); {row['queued']} wait, these would be {count} more",
                hint="wait until some have started, or ask for a larger quota (`remuda owner set`)",
            )


_SET = text("""
    INSERT INTO quotas (owner_id, pool_id, max_slots, max_queued, max_vms)
    VALUES (:owner, :pool, :max_slots, :max_queued, :max_vms)
    ON CONFLICT (owner_id, coalesce(pool_id, 0)) DO UPDATE SET
      max_slots = excluded.max_slots, max_queued = excluded.max_queued, max_vms = excluded.max_vms
""")


_LIMITS = ("max_slots", "max_queued", "max_vms")


def change(
    connection: Connection, owner: int, pool_id: int | None, values: Mapping[str, int | None]
) -> None:
    """Set `max_slots`, `max_queued`, `max_vms` (those that are given; None: no limit).

    In a pool; the first two also in all.
    """
    key = {"owner": owner, "pool": pool_id}
    of_it = "owner_id = :owner AND pool_id IS NOT DISTINCT FROM CAST(:pool AS bigint)"
    there = rows(
        connection,
        f"SELECT {', '.join(_LIMITS)} FROM quotas WHERE {of_it} FOR UPDATE",
        **key,
    )
    now = {**dict.fromkeys(_LIMITS), **(there[0] if there else {}), **values}
    if any(value is not None for value in now.values()):
        connection.execute(_SET, {**key, **now})
    else:
        connection.execute(text(f"DELETE FROM quotas WHERE {of_it}"), key)


def listing(connection: Connection) -> dict[int, list[dict[str, Any]]]:
    """Return the quotas (pool, None: all; max_slots, max_queued, max_vms) by their owner's id."""
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows(
        connection,
        """SELECT q.owner_id, p.name AS pool, q.max_slots, q.max_queued, q.max_vms FROM quotas q
           LEFT JOIN pools p ON p.id = q.pool_id ORDER BY q.owner_id, p.name NULLS FIRST""",
    ):
        found.setdefault(row["owner_id"], []).append({k: row[k] for k in row if k != "owner_id"})
    return found
