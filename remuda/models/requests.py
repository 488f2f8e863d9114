"""What users ask for besides submit and cancel: once more, follow, drain, stop a VM.

Each call is all or nothing; the wake-ups leave with the commit.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from remuda.errors import IllegalTransition, InstanceNotFound
from remuda.models.database import rows
from remuda.models.states import VmState
from remuda.models.vm_life import close_idle, lock_vms, move_vm

_AGAIN = text("""
    INSERT INTO jobs (pool_id, pool_ids, owner_id, spec_id, array_index, params, name, cores,
                      memory_bytes, walltime_s, priority, max_attempts, follow, retry, gpus,
                      architecture, constraints, sandbox, tags, pin_cpus, max_queue_s)
    SELECT coalesce(:pool, pool_id), CASE WHEN CAST(:pool AS bigint) IS NULL THEN pool_ids END,
           owner_id, spec_id, array_index, params, name, cores, memory_bytes, walltime_s, priority,
           max_attempts, follow, retry, gpus, architecture, constraints, sandbox, tags, pin_cpus,
           max_queue_s
    FROM jobs WHERE id = :id RETURNING id
""")


def submit_again(connection: Connection, job_id: int, *, pool_id: int | None = None) -> int:
    """Insert a NEW job like `job_id`, sharing its spec, in its pool or another; return its id.

    It keeps the index it had in an array, but is not one of the array's jobs.
    """
    made = connection.scalar(_AGAIN, {"id": job_id, "pool": pool_id})
    return int(made)


def follow_job(connection: Connection, job_id: int) -> None:
    """Have the job's output passed on while it runs, also if it runs already."""
    connection.execute(
        text(
            """UPDATE jobs SET follow = true
               WHERE id = :id AND NOT follow AND state <> 'TERMINATED'"""
        ),
        {"id": job_id},
    )


def drain_vm(connection: Connection, vm_id: int) -> None:
    """Have the VM take no new work; it stops when the old is done.

    Raises InstanceNotFound, or IllegalTransition when it is stopping or gone.
    """
    state = lock_vms(connection, [vm_id]).get(vm_id)
    if state is None:
        raise InstanceNotFound(f"there is no VM {vm_id}")
    if state in (VmState.STOPPING, VmState.HALTED):
        how = "it is being ended already" if state == VmState.STOPPING else "it is gone already"
        raise IllegalTransition(f"VM {vm_id} is {state}: {how}")
    connection.execute(text("UPDATE vms SET draining = true WHERE id = :id"), {"id": vm_id})
    connection.execute(text("SELECT pg_notify('remuda_wake', 'pool')"))


def stop_vm(connection: Connection, vm_id: int, *, now: bool = False) -> bool:
    """Have the VM terminated: at once if it is idle or `now`, else when its work is done.

    Returns whether it goes at once; what still runs on it then is lost and placed anew.
    """
    drain_vm(connection, vm_id)
    if now:
        move_vm(connection, vm_id, VmState.STOPPING)
    elif not close_idle(connection, [vm_id]):
        return False
    connection.execute(text("SELECT pg_notify('remuda_wake', 'stop')"))
    return True


def start_termination(
    connection: Connection, vm_id: int, *, allowed: Sequence[VmState] | None = None
) -> bool:
    """Have the VM terminated, if it is in one of the states `allowed` (None: any but at its end).

    Of many who ask exactly one gets True. A STOPPING one is sent for again only if `allowed` says
    so, and False returned. Raises InstanceNotFound, or IllegalTransition telling the state found.
    """
    state = lock_vms(connection, [vm_id]).get(vm_id)
    again = state == VmState.STOPPING and allowed is not None and VmState.STOPPING in allowed
    if not again:
        sources = [old for old in allowed if old is not VmState.STOPPING] if allowed else None
        move_vm(connection, vm_id, VmState.STOPPING, allowed=sources)
    connection.execute(text("SELECT pg_notify('remuda_wake', 'stop')"))
    return not again


def transaction_state(connection: Connection, transaction: str) -> str | None:
    """Return how the transaction of that id ended: committed, aborted; or in progress."""
    found = rows(connection, "SELECT pg_xact_status(CAST(:id AS xid8)) AS state", id=transaction)
    return None if found[0]["state"] is None else str(found[0]["state"])


def this_transaction(connection: Connection) -> str:
    """Return the id of the open transaction, for `transaction_state`."""
    return str(connection.scalar(text("SELECT CAST(pg_current_xact_id() AS text)")))
