"""Waiting for a lease: who waits, why, and the one transaction that serves them all.

Whoever may have made room, or asks for some, calls `serve`: the requests are matched with the VMs
at once, by priority and age, under a lock that one has at a time. So whoever waits is woken when
there is something for it, and those that cannot be served cost nobody anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, text

from remuda.matching import LeaseSnapshot, Matching, Request, match
from remuda.models import budgets, leases, vm_quotas
from remuda.models.budgets import STOP
from remuda.models.database import LEASE_CHANNEL, rows
from remuda.models.leasing import lock_matching, rooms, take
from remuda.models.sql import sql_list
from remuda.models.states import OPEN_POOL, PoolState
from remuda.models.submit import owner_id
from remuda.models.vm_life import lock_vms

LIFE_S = 60.0  # of a request that its client does not renew
RESERVE_AFTER_S = 30.0  # of waiting, or a third of what it would wait, a VM is kept for a wide one
_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A lease that is asked for: of `slots`, or (None) of a whole VM. Times in seconds.

    `holder`: who asks, as host:pid.
    """

    pool_ids: tuple[int, ...]
    owner: str
    sandbox: str = ""
    slots: int | None = 1
    ttl_s: float = 900.0
    priority: int = 0
    tags: tuple[str, ...] = ()
    task_id: str | None = None
    build_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request: a lease (see `leases.acquire`), or why there is none.

    `waits`: the request's id while it goes on waiting; `refused`: it can never be served.
    """

    lease: Mapping[str, Any] | None = None
    reason: str = ""
    waits: int | None = None
    refused: bool = False


_OPEN = f"p.state IN ({sql_list((*OPEN_POOL, PoolState.FAILURE))})"
_UNSERVED = "lease_id IS NULL AND NOT refused AND expires_at > now()"

_INSERT = text("""
    INSERT INTO lease_requests (pool_ids, owner_id, sandbox, slots, ttl_s, priority, tags, task_id,
                                build_id, labels, holder, deadline_at, expires_at)
    VALUES (:pools, :owner, :sandbox, :slots, :ttl_s, :priority, CAST(:tags AS jsonb), :task_id,
            :build_id, CAST(:labels AS jsonb), :holder, now() + make_interval(secs => :wait_s),
            now() + make_interval(secs => :life_s))
    RETURNING id
""")

_NOTE = text(f"""
    WITH r AS (
      SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:reasons AS text[]), CAST(:grows AS bool[]),
                           CAST(:refused AS bool[]), CAST(:kept AS bigint[]))
               AS r(id, reason, grows, refused, kept)
    ), noted AS (
      UPDATE lease_requests q SET reason = r.reason, grows = r.grows, refused = r.refused,
        vm_id = r.kept
      FROM r WHERE q.id = r.id AND (q.reason, q.grows, q.refused, q.vm_id)
        IS DISTINCT FROM (r.reason, r.grows, r.refused, r.kept)
      RETURNING q.id, q.refused
    ) SELECT pg_notify('{LEASE_CHANNEL}', 'served ' || id) FROM noted WHERE refused
""")

_LOCK_REQUESTS = text(f"""
    SELECT id FROM lease_requests WHERE id = ANY(:ids) AND {_UNSERVED} ORDER BY id
    FOR NO KEY UPDATE
""")

_GRANTED = text(f"""
    WITH g AS (
      UPDATE lease_requests q SET lease_id = r.lease, reason = NULL
      FROM unnest(CAST(:ids AS bigint[]), CAST(:leases AS bigint[])) AS r(id, lease)
      WHERE q.id = r.id RETURNING q.id
    ) SELECT pg_notify('{LEASE_CHANNEL}', 'served ' || id) FROM g
""")


def pools_named(connection: Connection, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return what leases need to know of the pools of these names, by name; see `find_pool`."""
    found = rows(
        connection,
        """SELECT DISTINCT ON (name) id, name, state, slots_per_vm, tags, tag_priorities FROM pools
           WHERE name = ANY(:names) AND state <> 'PENDING_DELETE'
           ORDER BY name, state <> 'CLOSED' DESC, id DESC""",
        names=list(names),
    )
    return {row["name"]: row for row in found}


def request(connection: Connection, wanted: Wanted, *, wait_s: float | None = None) -> Answer:
    """Ask for a lease in turn; if there is none now, wait for it, if `wait_s` is given.

    In a transaction that holds no lock yet, as `serve`.
    """
    made = insert(connection, wanted, owner=owner_id(connection, wanted.owner), wait_s=wait_s)
    serve(connection)
    answer = pick_up(connection, made, stay=wait_s is not None)
    if answer.waits is not None:
        connection.execute(_WAKE)
    return answer


def insert(
    connection: Connection, wanted: Wanted, *, owner: int, wait_s: float | None = None
) -> int:
    """Insert a request that lives for a while unless renewed; return its id."""
    made = connection.scalar(
        _INSERT,
        {
            "pools": list(wanted.pool_ids),
            "owner": owner,
            "sandbox": wanted.sandbox,
            "slots": wanted.slots,
            "ttl_s": wanted.ttl_s,
            "priority": wanted.priority,
            "tags": json.dumps(list(wanted.tags)),
            "task_id": wanted.task_id,
            "build_id": wanted.build_id,
            "labels": json.dumps(dict(wanted.labels)),
            "holder": wanted.holder,
            "wait_s": wait_s,
            "life_s": LIFE_S,
        },
    )
    return int(made)


def serve(connection: Connection) -> int:
    """Match all that wait with all that is free; return how many got a lease.

    What is decided is decided once more under the locks of the VMs it concerns, and so holds. To be
    called in a transaction that holds no lock yet: the first here is the matching's.
    """
    lock_matching(connection)
    served = 0
    for _ in range(_ROUNDS):
        snapshot = _snapshot(connection)
        found = match(snapshot)
        granted = _granted(connection, snapshot, found) if found.grants else 0
        served += granted
        if granted == len(found.grants):
            _note(connection, found)
            break
    return served


def _granted(connection: Connection, snapshot: LeaseSnapshot, found: Matching) -> int:
    vms = sorted({grant.vm_id for grant in found.grants})
    lock_vms(connection, vms)
    there = rooms(connection, _pools(snapshot), vm_ids=vms)
    sure = match(replace(snapshot, vms=there, kept=found.kept))
    ids = sorted(grant.request_id for grant in sure.grants)
    left = set(connection.scalars(_LOCK_REQUESTS, {"ids": ids}))  # others gave up meanwhile
    grants = sorted((g.request_id, g.vm_id, g.slots) for g in sure.grants if g.request_id in left)
    if grants:
        made = take(connection, grants)
        connection.execute(_GRANTED, {"ids": [grant[0] for grant in grants], "leases": made})
    return len(grants)


def _pools(snapshot: LeaseSnapshot) -> list[int]:
    return sorted({pool for request in snapshot.requests for pool in request.pool_ids})


def pick_up(connection: Connection, request_id: int, *, stay: bool) -> Answer:
    """Return what came of a request, which is gone then, unless it waits on and is to `stay`."""
    found = rows(
        connection, "SELECT * FROM lease_requests WHERE id = :id FOR UPDATE", id=request_id
    )
    if not found:
        return Answer(reason="it waited for too long without a sign of its client")
    row = found[0]
    lease = leases.held(connection, row["lease_id"]) if row["lease_id"] is not None else None
    if lease is None and not row["refused"] and stay:
        if row["lease_id"] is not None:  # it ended before it was taken
            connection.execute(
                text("UPDATE lease_requests SET lease_id = NULL WHERE id = :id"), {"id": request_id}
            )
            connection.execute(_WAKE)
        return Answer(reason=row["reason"] or "", waits=request_id)
    connection.execute(text("DELETE FROM lease_requests WHERE id = :id"), {"id": request_id})
    if lease is None:
        return Answer(reason=row["reason"] or "none is free", refused=row["refused"])
    renewed = leases.renew_many(connection, [(lease["id"], lease["token"], row["ttl_s"])])
    return Answer({**lease, "expires_at": renewed.get(lease["id"], lease["expires_at"])})


# Pools may have to grow, and whoever serves knows that somebody waits.
_WAKE = text("SELECT pg_notify('remuda_wake', 'lease'), pg_notify('remuda_wake', 'pool')")


def renew_requests(connection: Connection, request_ids: Sequence[int]) -> None:
    """Have the requests live on."""
    connection.execute(
        text(
            """UPDATE lease_requests SET expires_at = now() + make_interval(secs => :life)
               WHERE id = ANY(:ids)"""
        ),
        {"ids": list(request_ids), "life": LIFE_S},
    )


def forget_dead(connection: Connection) -> int:
    """Remove the requests of clients that gave no sign of life; return how many.

    What one of them was granted and did not take ends by itself.
    """
    done = connection.execute(text("DELETE FROM lease_requests WHERE expires_at < now()"))
    return int(done.rowcount)


def anybody_waits(connection: Connection) -> bool:
    """Return whether a request waits for a lease."""
    return bool(
        connection.scalar(text(f"SELECT EXISTS (SELECT FROM lease_requests WHERE {_UNSERVED})"))
    )


def waiting(connection: Connection) -> list[dict[str, Any]]:
    """Return the requests that wait, in the order in which they are served, with the reasons."""
    found = rows(
        connection,
        f"""SELECT q.id, o.name AS owner, q.sandbox, q.slots, q.priority, q.tags, q.task_id,
                   q.build_id, q.labels, q.holder, q.created_at, q.deadline_at, q.reason,
                   (SELECT array_agg(p.name ORDER BY array_position(q.pool_ids, p.id)) FROM pools p
                    WHERE p.id = ANY(q.pool_ids)) AS pools
            FROM lease_requests q JOIN owners o ON o.id = q.owner_id WHERE {_UNSERVED}
            ORDER BY q.priority DESC, q.id""",
    )
    return [dict(row) for row in found]


def _snapshot(connection: Connection) -> LeaseSnapshot:
    found = rows(
        connection,
        f"""SELECT id, pool_ids, owner_id, sandbox, slots, priority,
                   extract(epoch FROM clock_timestamp() - created_at)
                     >= least(:reserve, extract(epoch FROM deadline_at - created_at) / 3) AS reserves
            FROM lease_requests WHERE {_UNSERVED} ORDER BY id""",
        reserve=RESERVE_AFTER_S,
    )
    requests = tuple(
        Request(
            id=row["id"],
            pool_ids=tuple(row["pool_ids"]),
            owner_id=row["owner_id"],
            sandbox=row["sandbox"],
            slots=row["slots"],
            priority=row["priority"],
            reserves=row["reserves"],
        )
        for row in found
    )
    if not requests:
        return LeaseSnapshot(requests=(), vms=(), pools={})
    pools = _pools(LeaseSnapshot(requests=requests, vms=(), pools={}))
    owners = sorted({request.owner_id for request in requests})
    limits, owned = vm_quotas.lock_owners(connection, owners, pools)
    named = rows(
        connection,
        f"SELECT p.id, p.name, p.budget_stop FROM pools p WHERE p.id = ANY(:pools) AND {_OPEN}",
        pools=pools,
    )
    stopped = rows(
        connection,
        f"""SELECT o.id, {STOP} AS budget_stop FROM owners o
            WHERE o.id = ANY(:owners) AND {STOP} IS NOT NULL""",
        owners=owners,
    )
    return LeaseSnapshot(
        requests=requests,
        vms=rooms(connection, pools),
        pools={row["id"]: row["name"] for row in named},
        limits=limits,
        owned=owned,
        stopped_owners={row["id"]: row["budget_stop"] for row in stopped},
        stopped_pools={row["id"]: row["budget_stop"] for row in named if row["budget_stop"]},
        stopped_there=budgets.stopped(connection, pools),
    )


def _note(connection: Connection, found: Matching) -> None:
    """Keep the reasons, where they are others than before; who is refused is told."""
    told = {**found.reasons, **found.refused}
    if told:
        ids = sorted(told)
        connection.execute(
            _NOTE,
            {
                "ids": ids,
                "reasons": [told[i] for i in ids],
                "grows": [i not in found.idle and i not in found.refused for i in ids],
                "refused": [i in found.refused for i in ids],
                "kept": [k.vm_id if (k := found.kept.get(i)) else None for i in ids],
            },
        )
