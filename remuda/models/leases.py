"""Leases without a job: an owner's right to slots of a VM until it expires.

Acquisition is one transaction under the VM's row lock, so slots are never given twice, and a VM of a
pool that isolates is bound to its first owner (and sandbox) before anybody else sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from remuda.errors import StaleHolder
from remuda.models.base import sql_list
from remuda.models.database import rows
from remuda.models.states import OPEN_POOL

_CANDIDATES = f"""
    SELECT v.id FROM vms v JOIN pools p ON p.id = v.pool_id
    WHERE v.state = 'RUNNING' AND NOT v.draining AND v.slots >= :slots AND p.id = ANY(:pools)
      AND p.state IN ({sql_list(OPEN_POOL)})
      AND v.slots - :slots >= (SELECT coalesce(sum(cores), 0) FROM attempts a
            WHERE a.vm_id = v.id AND a.state IN ('PLACED', 'STARTED', 'EXITED'))
          + (SELECT coalesce(sum(slots), 0) FROM leases l
             WHERE l.vm_id = v.id AND NOT l.for_jobs AND l.released_at IS NULL)
      -- A VM that is bound serves whom it is bound to, and after a single use nobody.
      AND (p.isolation = 'shared' OR v.bound_owner_id IS NULL
           OR v.bound_owner_id = :owner AND (p.isolation = 'owner'
                OR p.isolation = 'sandbox' AND v.bound_sandbox = :sandbox))
    -- The user's order of pools first, then the VM this owner and sandbox used last.
    ORDER BY array_position(:pools, p.id), v.bound_owner_id IS NOT NULL DESC,
      EXISTS (SELECT FROM leases l WHERE l.vm_id = v.id AND l.owner_id = :owner
              AND l.sandbox = :sandbox) DESC, v.id
    LIMIT 1 FOR NO KEY UPDATE OF v SKIP LOCKED
"""

# As for jobs: see remuda.models.dispatch.
_BIND = text("""
    UPDATE vms SET bound_owner_id = :owner, bound_sandbox = :sandbox,
      draining = draining OR p.isolation = 'single_use'
    FROM pools p
    WHERE vms.id = :vm AND p.id = vms.pool_id AND p.isolation <> 'shared'
      AND vms.bound_owner_id IS NULL
""")

_THIS_ONE = _CANDIDATES.replace("WHERE", "WHERE v.id = :vm AND", 1)


def acquire(
    connection: Connection,
    *,
    pool_ids: Sequence[int],
    owner: int,
    sandbox: str,
    slots: int,
    ttl_s: float,
) -> dict[str, Any] | None:
    """Lease `slots` of a free VM of the pools, in their order; None when there is none now.

    Returns the lease (id, token, expires_at) with the VM (vm_id, name, address, ips).
    """
    wanted = {
        "slots": slots,
        "pools": list(pool_ids),
        "owner": owner,
        "sandbox": sandbox,
    }
    while found := rows(connection, _CANDIDATES, **wanted):
        # Looked at again, now that the row is locked: a dispatcher may have been quicker. Then the
        # next look at all VMs sees what it placed, too, and finds another one.
        if rows(connection, _THIS_ONE, vm=found[0]["id"], **wanted):
            break
    else:
        return None
    vm = found[0]["id"]
    connection.execute(_BIND, {"vm": vm, "owner": owner, "sandbox": sandbox})
    made = rows(
        connection,
        """WITH l AS (
             INSERT INTO leases (vm_id, owner_id, sandbox, for_jobs, slots, expires_at)
             VALUES (:vm, :owner, :sandbox, false, :slots, now() + make_interval(secs => :ttl))
             RETURNING id, vm_id, token, expires_at)
           SELECT l.*, v.name, v.address, v.private_ip, v.public_ip FROM l JOIN vms v ON v.id = l.vm_id""",
        vm=vm,
        owner=owner,
        sandbox=sandbox,
        slots=slots,
        ttl=ttl_s,
    )
    return dict(made[0])


def renew(connection: Connection, lease_id: int, token: UUID, *, ttl_s: float) -> None:
    """Extend the lease to `ttl_s` seconds from now.

    Raises StaleHolder when it is over, or its VM on the way out.
    """
    done = connection.execute(
        text(
            """UPDATE leases SET expires_at = now() + make_interval(secs => :ttl)
               WHERE id = :id AND token = :token AND released_at IS NULL
                 AND EXISTS (SELECT FROM vms WHERE vms.id = leases.vm_id
                             AND vms.state IN ('RUNNING', 'STALLED'))"""
        ),
        {"id": lease_id, "token": token, "ttl": ttl_s},
    )
    if done.rowcount == 0:
        raise StaleHolder(f"lease {lease_id} is over", hint="acquire a new one")


def release(connection: Connection, lease_id: int, token: UUID) -> bool:
    """End the lease; False when it was over already (a second call is harmless)."""
    released = connection.scalar(
        text(
            """UPDATE leases SET released_at = now()
               WHERE id = :id AND token = :token AND released_at IS NULL RETURNING vm_id"""
        ),
        {"id": lease_id, "token": token},
    )
    if released is not None:
        _free(connection, [released])
    return released is not None


def expire(connection: Connection) -> int:
    """End the leases whose time is over; return how many."""
    ended = list(
        connection.scalars(
            text(
                """UPDATE leases SET released_at = now()
                   WHERE NOT for_jobs AND released_at IS NULL AND expires_at < now() RETURNING vm_id"""
            )
        )
    )
    _free(connection, ended)
    return len(ended)


def release_all(connection: Connection, pool_id: int) -> int:
    """End every lease without a job on the pool's VMs, whoever holds it; return how many."""
    ended = list(
        connection.scalars(
            text(
                """UPDATE leases l SET released_at = now() FROM vms v
                   WHERE v.id = l.vm_id AND v.pool_id = :pool AND NOT l.for_jobs
                     AND l.released_at IS NULL RETURNING l.vm_id"""
            ),
            {"pool": pool_id},
        )
    )
    _free(connection, ended)
    return len(ended)


def _free(connection: Connection, vm_ids: Sequence[int]) -> None:
    if vm_ids:
        connection.execute(
            text("UPDATE vms SET busy_at = now() WHERE id = ANY(:ids)"), {"ids": list(vm_ids)}
        )
        connection.execute(text("SELECT pg_notify('remuda_wake', 'dispatch')"))
