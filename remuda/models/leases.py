"""Leases without a job: an owner's right to slots of a VM until it expires.

Acquisition is one transaction under the VM's row lock, so slots are never given twice, and a VM of a
pool that isolates is bound to its first owner (and sandbox) before anybody else sees it. Whoever
ends a lease locks the VM first, as everybody does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from remuda.errors import IllegalTransition, StaleHolder, UnknownLease
from remuda.models import vm_quotas
from remuda.models.budgets import STOP, STOPPED_THERE
from remuda.models.database import LEASE_CHANNEL, rows
from remuda.models.vm_life import close_idle

# Whom a limit of VMs says something of is served by matching alone.
_ACQUIRE = f"""
    SELECT * FROM remuda_lease_acquire(
      -- Whose budget is used up gets, or gives, nothing.
      ARRAY(SELECT p.id FROM pools p WHERE p.id = ANY(CAST(:pools AS bigint[]))
              AND p.budget_stop IS NULL
              AND NOT EXISTS (SELECT FROM owners o WHERE o.name = :owner
                                AND ({STOP} IS NOT NULL OR {STOPPED_THERE}))
            ORDER BY array_position(CAST(:pools AS bigint[]), p.id)),
      :owner, :sandbox, CAST(:slots AS int), CAST(:ttl_s AS float8),
      CAST(:token AS uuid), CAST(:task_id AS text), CAST(:build_id AS text),
      CAST(:labels AS jsonb), :holder)
    WHERE (SELECT NOT EXISTS (SELECT FROM owners o WHERE o.name = :owner AND {vm_quotas.LIMITED}))
"""

_END = """
    WITH v AS (
      SELECT v.id FROM vms v WHERE v.id IN (
        SELECT l.vm_id FROM leases l WHERE NOT l.for_jobs AND l.released_at IS NULL AND {which})
      ORDER BY v.id FOR NO KEY UPDATE
    )
    UPDATE leases l SET released_at = now(), ended = :ended FROM v
    WHERE l.vm_id = v.id AND NOT l.for_jobs AND l.released_at IS NULL AND {which}
    RETURNING l.id, l.vm_id
"""

_OF_ID = _END.format(which="l.id = :id")
_OVERDUE = _END.format(which="l.expires_at < now()")
_OF_POOL = _END.format(which="l.vm_id IN (SELECT id FROM vms WHERE pool_id = :pool)")

# VMs of which the reuse is at its end, and nobody has anything on them.
_OVER = """
    SELECT r.id FROM remuda_lease_vms(ARRAY(
      SELECT id FROM pools WHERE state NOT IN ('CLOSED', 'PENDING_DELETE') AND coalesce(
        reuse_opportunity_s, reuse_max_s, reuse_max_count) IS NOT NULL)) r
    WHERE r.used_slots = 0 AND (r.spent OR r.unfit = 'have served their time') ORDER BY r.id
"""


@dataclass(frozen=True, slots=True)
class Released:
    """`done`: the lease had not been over; `waited`: somebody waits for one; `over`: VMs to end."""

    done: bool
    waited: bool = False
    over: Sequence[int] = ()


def acquire(
    connection: Connection,
    *,
    pool_ids: Sequence[int],
    owner: str,
    sandbox: str,
    slots: int | None,
    ttl_s: float,
    token: UUID | None = None,
    task_id: str | None = None,
    build_id: str | None = None,
    labels: Mapping[str, str] | None = None,
    holder: str = "",
) -> dict[str, Any] | None:
    """Lease `slots` (None: all) of a free VM of the pools, in their order; None when there is none.

    Nor does it overtake anybody who waits for one of these pools, or serve whom a limit of VMs
    concerns: see `lease_requests`. One call
    that, given a token, may be repeated if its answer is lost. Returns the lease (id, token,
    expires_at, slots) with the VM (vm_id, name, address, ips).
    """
    found = rows(
        connection,
        _ACQUIRE,
        pools=list(pool_ids),
        owner=owner,
        sandbox=sandbox,
        slots=slots,
        ttl_s=ttl_s,
        token=token or uuid4(),
        task_id=task_id,
        build_id=build_id,
        labels=json.dumps(dict(labels or {})),
        holder=holder,
    )
    return dict(found[0]) if found else None


def held(connection: Connection, lease_id: int) -> dict[str, Any] | None:
    """Return a lease that is not over with its VM, as `acquire` does."""
    found = rows(connection, "SELECT * FROM remuda_lease_held(:id)", id=lease_id)
    return dict(found[0]) if found else None


def data(connection: Connection, lease_id: int, token: UUID | str) -> str:
    """Return what the hook that made the lease's VM printed; "" if none did, or the lease is over."""
    found = connection.scalar(
        text(
            """SELECT c.output FROM leases l JOIN vms v ON v.id = l.vm_id
               JOIN command_vms c ON c.token = CAST(v.token AS text)
               WHERE l.id = :id AND l.token = CAST(:token AS uuid) AND l.released_at IS NULL"""
        ),
        {"id": lease_id, "token": str(token)},
    )
    return str(found or "")


def renew(connection: Connection, lease_id: int, token: UUID | str, *, ttl_s: float) -> datetime:
    """Extend the lease to `ttl_s` seconds from now; return when that is.

    Raises StaleHolder when it is over, or its VM on the way out.
    """
    kept = renew_many(connection, [(lease_id, token, ttl_s)])
    if not kept:
        raise StaleHolder(f"lease {lease_id} is over", hint="acquire a new one")
    return kept[lease_id]


def renew_many(
    connection: Connection, held: Sequence[tuple[int, UUID | str, float]]
) -> dict[int, datetime]:
    """Extend leases, given as (id, token, ttl_s); return when each that is not over now expires."""
    found = connection.execute(
        text(
            """UPDATE leases SET expires_at = now() + make_interval(secs => r.ttl)
               FROM unnest(CAST(:ids AS bigint[]), CAST(:tokens AS uuid[]), CAST(:ttls AS float8[]))
                      AS r(id, token, ttl)
               WHERE leases.id = r.id AND leases.token = r.token AND released_at IS NULL
                 AND EXISTS (SELECT FROM vms WHERE vms.id = leases.vm_id
                             AND vms.state IN ('RUNNING', 'STALLED'))
               RETURNING leases.id, expires_at"""
        ),
        {
            "ids": [lease_id for lease_id, _, _ in held],
            "tokens": [str(token) for _, token, _ in held],
            "ttls": [ttl_s for _, _, ttl_s in held],
        },
    )
    return {row.id: row.expires_at for row in found}


def release(connection: Connection, lease_id: int, token: UUID | str) -> Released:
    """End the lease; a second call is harmless. Whoever waits is to be served next.

    VMs that are not to be used again are to be brought to their end by `end_vms`.
    """
    done, over, waited = connection.execute(
        text("SELECT * FROM remuda_lease_release(:id, CAST(:token AS uuid))"),
        {"id": lease_id, "token": str(token)},
    ).one()
    return Released(done, waited, over or ())


def revoke(connection: Connection, lease_id: int) -> None:
    """End the lease whoever holds it, who is told at once.

    Raises UnknownLease, or IllegalTransition when it was over.
    """
    ended = rows(connection, _OF_ID, id=lease_id, ended="revoked")
    _tell(connection, ended)
    _free(connection, ended)
    if ended:
        return
    found = rows(connection, "SELECT ended, for_jobs FROM leases WHERE id = :id", id=lease_id)
    if not found or found[0]["for_jobs"]:
        raise UnknownLease(f"there is no lease {lease_id}", hint="`remuda lease list`")
    raise IllegalTransition(f"lease {lease_id} is over: it was {found[0]['ended'] or 'released'}")


def expire(connection: Connection) -> int:
    """End the leases whose time is over; return how many."""
    ended = rows(connection, _OVERDUE, ended="expired")
    _tell(connection, ended)
    _free(connection, ended)
    return len(ended)


def release_all(connection: Connection, pool_id: int) -> int:
    """End every lease without a job on the pool's VMs, whoever holds it; return how many."""
    ended = rows(connection, _OF_POOL, pool=pool_id, ended="revoked")
    _tell(connection, ended)
    _free(connection, ended)
    return len(ended)


def end_vms(connection: Connection, vm_ids: Sequence[int]) -> list[int]:
    """Bring those of the VMs that serve nobody to STOPPING; return them."""
    ended = close_idle(connection, vm_ids)
    if ended:
        connection.execute(text("SELECT pg_notify('remuda_wake', 'stop')"))
    return ended


def end_worn(connection: Connection) -> list[int]:
    """Bring VMs that are not to be leased again, and serve nobody now, to STOPPING; return them."""
    found = [row["id"] for row in rows(connection, _OVER)]
    return end_vms(connection, found) if found else []


def listing(
    connection: Connection,
    *,
    owner: str | None = None,
    pool_id: int | None = None,
    task_id: str | None = None,
    build_id: str | None = None,
    ended: bool = False,
    limit: int = 1000,
) -> list[dict[str, Any]]:
    """Return the leases without a job that meet every filter, newest last; ended ones if told."""
    found = rows(
        connection,
        """SELECT * FROM (
             SELECT l.id, v.name AS vm, l.vm_id, p.name AS pool, o.name AS owner, l.sandbox,
                    l.slots, l.task_id, l.build_id, l.labels, l.holder, l.acquired_at,
                    l.expires_at, l.released_at,
                    CASE WHEN l.released_at IS NOT NULL THEN coalesce(l.ended, 'released') END
                      AS ended
             FROM leases l JOIN vms v ON v.id = l.vm_id JOIN pools p ON p.id = v.pool_id
             JOIN owners o ON o.id = l.owner_id
             WHERE NOT l.for_jobs AND (:ended OR l.released_at IS NULL)
               AND (CAST(:owner AS text) IS NULL OR o.name = :owner)
               AND (CAST(:pool AS bigint) IS NULL OR v.pool_id = :pool)
               AND (CAST(:task AS text) IS NULL OR l.task_id = :task)
               AND (CAST(:build AS text) IS NULL OR l.build_id = :build)
             ORDER BY l.id DESC LIMIT :limit) AS l ORDER BY id""",
        owner=owner,
        pool=pool_id,
        task=task_id,
        build=build_id,
        ended=ended,
        limit=limit,
    )
    return [dict(row) for row in found]


def due_releases(connection: Connection) -> list[int]:
    """Return the VMs that their providers are to make ready for their next users."""
    found = rows(
        connection, "SELECT id FROM vms WHERE state = 'RUNNING' AND release_due_at <= now()"
    )
    return [row["id"] for row in found]


def begin_release(connection: Connection, vm_id: int, *, most_s: float) -> bool:
    """Take on a VM's release for `most_s` seconds; False if another did, or there is none due."""
    done = connection.execute(
        text(
            """UPDATE vms SET release_due_at = now() + make_interval(secs => :most)
               WHERE id = :vm AND state = 'RUNNING' AND release_due_at <= now()"""
        ),
        {"vm": vm_id, "most": most_s},
    )
    return done.rowcount == 1


def end_release(connection: Connection, vm_id: int) -> None:
    """Note that the VM is ready for its next user."""
    connection.execute(
        text("UPDATE vms SET release_due_at = NULL WHERE id = :vm AND release_due_at IS NOT NULL"),
        {"vm": vm_id},
    )
    connection.execute(text("SELECT pg_notify('remuda_wake', 'dispatch')"))


def _free(connection: Connection, ended: Sequence[Mapping[str, Any]]) -> None:
    """Note that VMs have room again; those that serve nobody any more are on their way out."""
    if ended:
        freed = {"vms": sorted({row["vm_id"] for row in ended})}
        over = connection.scalar(text("SELECT remuda_lease_freed(CAST(:vms AS bigint[]))"), freed)
        if over:
            end_vms(connection, over)


def _tell(connection: Connection, ended: Sequence[Mapping[str, Any]]) -> None:
    """Tell the holders that their leases are over."""
    if ended:
        connection.execute(
            text(
                "SELECT pg_notify(:channel, 'over ' || id) FROM unnest(CAST(:ids AS bigint[])) AS id"
            ),
            {"channel": LEASE_CHANNEL, "ids": [row["id"] for row in ended]},
        )
