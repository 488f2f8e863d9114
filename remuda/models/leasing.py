"""How leases are taken: which VMs may be leased, to whom, and the statement that does it.

A VM's row lock protects its slots: whoever leases holds it, as a dispatcher does. An owner's lock
(advisory, only of owners with a limit) protects the count of its VMs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.matching import Allowance, LeaseVm
from remuda.models.base import sql_list
from remuda.models.database import rows
from remuda.models.states import LIVE_ATTEMPT, OPEN_POOL

_LOCKS = 0x1EA5E  # the advisory locks' class; 0 is the matching's, others are owners'

# It was leased as often, or for as long, as its pool lets a VM be.
SPENT = """(v.lease_count > 0 AND (
    v.lease_count > coalesce(p.reuse_max_count, 2147483647)
    OR v.leased_at + make_interval(secs => coalesce(p.reuse_max_s, 1e9)) <= now()
    OR p.reuse_opportunity_s = 0 AND u.slots = 0))"""

# Or nobody used it in the time it waits for whom it served.
WORN = f"""({SPENT} OR v.lease_count > 0 AND u.slots = 0
    AND v.busy_at + make_interval(secs => coalesce(p.reuse_opportunity_s, 1e9)) <= now())"""

# Since its watch was last taken over it must have been heard: what is known of it else is hearsay.
_UNFIT = f"""CASE
    WHEN v.heartbeat_at IS NULL OR v.heartbeat_at < v.listening_since
      OR v.heartbeat_at < now() - make_interval(secs => p.stalling_interval_s)
      THEN 'were not heard of yet since they were taken up'
    WHEN v.release_due_at IS NOT NULL THEN 'are being made ready for their next user'
    WHEN {WORN} THEN 'have served their time'
    ELSE '' END"""

USED = f"""
    LEFT JOIN LATERAL (
      SELECT coalesce(sum(x.slots), 0)::int AS slots, array_agg(x.owner_id) AS holders FROM (
        SELECT a.cores AS slots, NULL::bigint AS owner_id FROM attempts a
        WHERE a.vm_id = v.id AND a.state IN ({sql_list(LIVE_ATTEMPT)})
        UNION ALL
        SELECT l.slots, l.owner_id FROM leases l
        WHERE l.vm_id = v.id AND NOT l.for_jobs AND l.released_at IS NULL) AS x) u ON true"""

_FROM = f"""
    FROM vms v JOIN pools p ON p.id = v.pool_id {USED}
    WHERE v.state = 'RUNNING' AND NOT v.draining AND p.state IN ({sql_list(OPEN_POOL)})
      AND p.id = ANY(CAST(:pools AS bigint[]))"""

_THEIRS = """coalesce(CASE p.isolation
    WHEN 'shared' THEN :owner = ANY(u.holders)
    WHEN 'owner' THEN v.bound_owner_id = :owner
    WHEN 'sandbox' THEN v.bound_owner_id = :owner AND v.bound_sandbox = :sandbox
    ELSE false END, false)"""

_MINE = """coalesce(CASE WHEN p.isolation <> 'shared' AND v.bound_owner_id IS NOT NULL
    THEN v.bound_owner_id = :owner AND v.bound_sandbox = :sandbox
    ELSE v.leased_owner_id = :owner AND v.leased_sandbox = :sandbox END, false)"""

# The order of `remuda.matching`: the pools', then the VMs that serve the owner, then clean ones.
_MAY = f"""{_FROM}
      AND {_UNFIT} = ''
      AND CASE WHEN CAST(:slots AS int) IS NULL THEN u.slots = 0 ELSE v.slots - u.slots >= :slots END
      AND ({_THEIRS} OR p.id = ANY(CAST(:more AS bigint[]))
                        AND (p.isolation = 'shared' OR v.bound_owner_id IS NULL))"""

_PICK = f"""
    SELECT v.id {_MAY}
    ORDER BY array_position(CAST(:pools AS bigint[]), p.id), {_THEIRS} DESC, {_MINE} DESC, v.id
    LIMIT 1 FOR NO KEY UPDATE OF v SKIP LOCKED"""

_TAKE = """
    , g AS (
      SELECT DISTINCT ON (vm_id) vm_id, owner_id, sandbox, count(*) OVER (PARTITION BY vm_id) AS count
      FROM r ORDER BY vm_id, request_id DESC
    ), v AS (
      UPDATE vms SET lease_count = lease_count + g.count, leased_at = coalesce(leased_at, now()),
        leased_owner_id = g.owner_id, leased_sandbox = g.sandbox,
        -- From its first lease or job on it serves that owner (and sandbox) alone.
        bound_owner_id = CASE WHEN p.isolation = 'shared' THEN bound_owner_id
                              ELSE coalesce(bound_owner_id, g.owner_id) END,
        bound_sandbox = CASE WHEN p.isolation = 'shared' OR bound_owner_id IS NOT NULL
                             THEN bound_sandbox ELSE g.sandbox END,
        draining = draining OR p.isolation = 'single_use'
      FROM g, pools p WHERE vms.id = g.vm_id AND p.id = vms.pool_id RETURNING vms.*
    ), l AS (
      INSERT INTO leases (vm_id, owner_id, sandbox, for_jobs, slots, expires_at, task_id, build_id,
                          labels, holder)
      SELECT vm_id, owner_id, sandbox, false, slots, now() + make_interval(secs => ttl_s), task_id,
             build_id, labels, holder
      FROM r ORDER BY request_id RETURNING *
    )"""

VM_COLUMNS = "v.name, v.address, v.private_ip, v.public_ip, v.pool_id"

_TAKE_ONE = text(f"""
    WITH r AS (
      SELECT v.id AS vm_id, CAST(:owner AS bigint) AS owner_id, CAST(:sandbox AS text) AS sandbox,
             coalesce(CAST(:slots AS int), v.slots) AS slots, CAST(:ttl_s AS float8) AS ttl_s,
             CAST(:task_id AS text) AS task_id, CAST(:build_id AS text) AS build_id,
             CAST(:labels AS jsonb) AS labels, CAST(:holder AS text) AS holder, 0 AS request_id
      {_MAY} AND v.id = :vm
    ) {_TAKE}
    SELECT l.id, l.vm_id, l.token, l.expires_at, l.slots, {VM_COLUMNS} FROM l
    JOIN v ON v.id = l.vm_id
""")

# What is granted while its client may be gone is short until that takes it.
_TAKE_MANY = text(f"""
    WITH r AS (
      SELECT x.vm_id, q.owner_id, q.sandbox, x.slots, least(q.ttl_s, 30) AS ttl_s, q.task_id,
             q.build_id, q.labels, q.holder, q.id AS request_id
      FROM unnest(CAST(:requests AS bigint[]), CAST(:vms AS bigint[]), CAST(:slots AS int[]))
             AS x(request_id, vm_id, slots)
      JOIN lease_requests q ON q.id = x.request_id
    ) {_TAKE}
    SELECT l.id FROM l ORDER BY l.id
""")

_COUNTED = """
    SELECT o.id, o.name, o.max_vms, v.pool_id, count(v.id) AS count
    FROM owners o LEFT JOIN vms v ON v.state <> 'HALTED' AND (v.bound_owner_id = o.id OR v.id IN (
      SELECT l.vm_id FROM leases l
      WHERE l.owner_id = o.id AND l.released_at IS NULL AND NOT l.for_jobs))
    WHERE o.id = ANY(:owners) GROUP BY o.id, v.pool_id
"""


def lock_matching(connection: Connection) -> None:
    """Wait until nobody else matches requests with VMs, until this transaction ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:class, 0)"), {"class": _LOCKS})


def allowances(
    connection: Connection, owners: Sequence[int], pool_ids: Sequence[int]
) -> dict[int, Allowance]:
    """Return what the owners that have a limit may have and have, which stays so until the end."""
    pools = {
        row["id"]: row["most"]
        for row in rows(
            connection,
            """SELECT id, max_vms_per_owner AS most FROM pools
               WHERE id = ANY(:pools) AND max_vms_per_owner IS NOT NULL""",
            pools=list(pool_ids),
        )
    }
    limited = [
        row["id"]
        for row in rows(
            connection,
            """SELECT id FROM owners WHERE id = ANY(:owners) AND (:all OR max_vms IS NOT NULL)
               ORDER BY id""",
            owners=list(owners),
            all=bool(pools),
        )
    ]
    if not limited:
        return {}
    for owner in limited:  # of the lowest id first, as everybody locks them
        lock = {"class": _LOCKS, "owner": owner % (2**31 - 1) + 1}
        connection.execute(text("SELECT pg_advisory_xact_lock(:class, :owner)"), lock)
    return _counted(connection, limited, pools)


def _counted(
    connection: Connection, owners: Sequence[int], pools: Mapping[int, int]
) -> dict[int, Allowance]:
    found: dict[int, dict[int | None, int]] = {owner: {} for owner in owners}
    about: dict[int, Mapping[str, Any]] = {}
    for row in rows(connection, _COUNTED, owners=list(owners)):
        about[row["id"]] = row
        found[row["id"]][row["pool_id"]] = row["count"]
    return {
        owner: Allowance(
            name=about[owner]["name"],
            most=about[owner]["max_vms"],
            has=sum(found[owner].values()),
            pools={pool: (most, found[owner].get(pool, 0)) for pool, most in pools.items()},
        )
        for owner in owners
    }


def rooms(
    connection: Connection, pool_ids: Sequence[int], *, vm_ids: Sequence[int] | None = None
) -> tuple[LeaseVm, ...]:
    """Return the running VMs of the pools (of `vm_ids`, if given) as matching sees them."""
    found = rows(
        connection,
        f"""SELECT v.id, v.pool_id, v.slots, u.slots AS used_slots, p.isolation, v.bound_owner_id,
                   v.bound_sandbox, u.holders, v.leased_owner_id, v.leased_sandbox,
                   {_UNFIT} AS unfit {_FROM}
              AND (CAST(:vms AS bigint[]) IS NULL OR v.id = ANY(:vms))""",
        pools=list(pool_ids),
        vms=None if vm_ids is None else list(vm_ids),
    )
    return tuple(
        LeaseVm(
            id=row["id"],
            pool_id=row["pool_id"],
            slots=row["slots"],
            used_slots=row["used_slots"],
            isolation=row["isolation"],
            bound_owner_id=row["bound_owner_id"],
            bound_sandbox=row["bound_sandbox"],
            holders=frozenset(i for i in row["holders"] or () if i is not None),
            last=None
            if row["leased_owner_id"] is None
            else (row["leased_owner_id"], row["leased_sandbox"] or ""),
            unfit=row["unfit"],
        )
        for row in found
    )


def take_one(
    connection: Connection,
    *,
    pool_ids: Sequence[int],
    owner: int,
    sandbox: str,
    slots: int | None,
    ttl_s: float,
    more: Sequence[int],
    task_id: str | None,
    build_id: str | None,
    labels: Mapping[str, str],
    holder: str,
) -> dict[str, Any] | None:
    """Lease the best VM of the pools that nobody has in hand; None when there is none.

    `more`: the pools in which the owner may have a VM more.
    """
    wanted = {
        "pools": list(pool_ids),
        "owner": owner,
        "sandbox": sandbox,
        "slots": slots,
        "more": list(more),
    }
    lease = {
        "ttl_s": ttl_s,
        "task_id": task_id,
        "build_id": build_id,
        "labels": json.dumps(dict(labels)),
        "holder": holder,
    }
    while found := rows(connection, _PICK, **wanted):
        # Looked at again, now that the row is locked: a dispatcher may have been quicker. Then the
        # next look at all VMs sees what it placed, too, and finds another one.
        made = connection.execute(_TAKE_ONE, {**wanted, **lease, "vm": found[0]["id"]}).mappings()
        if row := made.first():
            return dict(row)
    return None


def take_many(connection: Connection, grants: Sequence[tuple[int, int, int]]) -> list[int]:
    """Turn (request, VM, slots), decided under the VMs' locks, into leases; return their ids.

    They are in the order of the requests' ids.
    """
    ordered = sorted(grants)
    values = {
        "requests": [request for request, _, _ in ordered],
        "vms": [vm for _, vm, _ in ordered],
        "slots": [slots for _, _, slots in ordered],
    }
    return list(connection.scalars(_TAKE_MANY, values))
