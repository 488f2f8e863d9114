"""What matching sees of the VMs that may be leased, and how what it decides is done.

A VM's row lock protects its slots: whoever leases holds it, as a dispatcher does. See
r0006_leases.sql; and `vm_quotas` for what protects the counts of owners' VMs.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from remuda.matching import LeaseVm
from remuda.models.database import rows
from remuda.models.sql import sql_list
from remuda.models.states import OPEN_POOL

# What is granted while its client may be gone is short until that takes it.
_TAKE = text("""
    SELECT remuda_lease_take(r.vm, q.owner_id, q.sandbox, r.slots, least(q.ttl_s, 30),
                             gen_random_uuid(), q.task_id, q.build_id, q.labels, q.holder)
    FROM unnest(CAST(:requests AS bigint[]), CAST(:vms AS bigint[]), CAST(:slots AS int[]))
           WITH ORDINALITY AS r(id, vm, slots, place)
    JOIN lease_requests q ON q.id = r.id ORDER BY r.place
""")

_ROOMS = f"""
    SELECT r.*, ARRAY(SELECT l.owner_id FROM leases l WHERE l.vm_id = r.id AND l.for_jobs
                        AND l.released_at IS NULL) AS workers
    FROM remuda_lease_vms(CAST(:pools AS bigint[]), CAST(:vms AS bigint[])) r
    JOIN vms v ON v.id = r.id JOIN pools p ON p.id = r.pool_id
    WHERE NOT v.draining AND p.state IN ({sql_list(OPEN_POOL)})
"""


def lock_matching(connection: Connection) -> None:
    """Wait until nobody else matches requests with VMs, until this transaction ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(125534, 0)"))


def rooms(
    connection: Connection, pool_ids: Sequence[int], *, vm_ids: Sequence[int] | None = None
) -> tuple[LeaseVm, ...]:
    """Return the running VMs of the open pools (of `vm_ids`, if given) as matching sees them."""
    found = rows(
        connection, _ROOMS, pools=list(pool_ids), vms=None if vm_ids is None else list(vm_ids)
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
            holders=frozenset([*(row["holders"] or ()), *row["workers"]]),
            last=None
            if row["leased_owner_id"] is None
            else (row["leased_owner_id"], row["leased_sandbox"] or ""),
            unfit=row["unfit"],
        )
        for row in found
    )


def take(connection: Connection, grants: Sequence[tuple[int, int, int]]) -> list[int]:
    """Turn (request, VM, slots), decided under their locks, into leases; return these in order."""
    values = {
        "requests": [request for request, _, _ in grants],
        "vms": [vm for _, vm, _ in grants],
        "slots": [slots for _, _, slots in grants],
    }
    return list(connection.scalars(_TAKE, values))
