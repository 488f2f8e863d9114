"""What matching sees of the VMs that may be leased, and how what it decides is done.

A VM's row lock protects its slots: whoever leases holds it, as a dispatcher does. An owner's lock
(advisory, only of owners with a limit) protects the count of its VMs. See r0006_leases.sql.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, text

from remuda.matching import Allowance, LeaseVm
from remuda.models import vm_quotas
from remuda.models.base import sql_list
from remuda.models.database import rows
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


def allowances(
    connection: Connection, owners: Sequence[int], pool_ids: Sequence[int]
) -> dict[int, Allowance]:
    """Return what the owners that have a limit may have and have, which stays so until the end."""
    limited = rows(
        connection,
        f"""SELECT id, remuda_lock_owner(id)::text AS locked FROM (
             SELECT id FROM owners o WHERE id = ANY(:owners) AND {vm_quotas.LIMITED} ORDER BY id) AS o""",
        owners=list(owners),
        pools=list(pool_ids),
    )
    ids = [row["id"] for row in limited]
    if not ids:
        return {}
    # A statement of its own: it sees what the locks' last holders did.
    has: dict[int, Counter[int]] = defaultdict(Counter)
    for row in rows(connection, vm_quotas.VMS_OF, owners=ids):
        has[row["owner_id"]][row["pool_id"]] += 1
    found: dict[int, Allowance] = {}
    for row in vm_quotas.limits(connection, ids, pool_ids):
        mine, pool = has[row["id"]], row["pool_id"]
        one = found.setdefault(
            row["id"],
            Allowance(
                name=row["name"], most=row["max_vms"], has=mine.total(), pools={}, own=frozenset()
            ),
        )
        if row["most"] is not None:
            found[row["id"]] = replace(
                one,
                pools={**one.pools, pool: (row["most"], mine[pool])},
                own=one.own | ({pool} if row["most"] == row["own"] else frozenset()),
            )
    return found


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
