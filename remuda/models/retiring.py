"""VMs that are to go or to restart: what the rules need to know, and what is done about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import BadInput, IllegalTransition, InstanceNotFound, Refused
from remuda.models.database import rows
from remuda.models.images import OUTDATED
from remuda.models.pool_life import image_id
from remuda.models.sql import sql_list
from remuda.models.states import OPEN_POOL, PoolState, VmState
from remuda.models.vm_life import close_idle, lock_vms

_BUSY = """(EXISTS (SELECT FROM attempts a WHERE a.vm_id = v.id
                    AND a.state IN ('PLACED', 'STARTED', 'EXITED'))
            OR EXISTS (SELECT FROM leases l WHERE l.vm_id = v.id AND NOT l.for_jobs
                       AND l.released_at IS NULL))"""

_CONCERNED = f"""
    SELECT p.id, p.name, p.max_vm_age_s, p.rollout_max_unavailable, p.is_elastic, p.instance_count,
           p.image_id, now() AS now
    FROM pools p WHERE p.state IN ({sql_list((*OPEN_POOL, PoolState.FAILURE))})
      AND (p.max_vm_age_s IS NOT NULL OR p.rollout_max_unavailable IS NOT NULL
           OR EXISTS (SELECT FROM vms v WHERE v.pool_id = p.id AND v.state <> 'HALTED'
                      AND v.interruption_at IS NOT NULL))
    ORDER BY p.id
"""


def concerned_pools(connection: Connection) -> list[Mapping[str, Any]]:
    """Return the pools that may have VMs to retire."""
    return list(rows(connection, _CONCERNED))


def lock_pool(connection: Connection, pool_id: int) -> bool:
    """Lock the pool's row; False if somebody else has it: then it is in hand."""
    found = rows(
        connection,
        "SELECT id FROM pools WHERE id = :id FOR NO KEY UPDATE SKIP LOCKED",
        id=pool_id,
    )
    return bool(found)


def ages(connection: Connection, pool_id: int) -> list[Mapping[str, Any]]:
    """Return the pool's VMs that are not HALTED, as `remuda.workers.retiring.VmAge` has them."""
    return list(
        rows(
            connection,
            f"""SELECT v.id, v.state, v.draining, {_BUSY} AS busy, {OUTDATED} AS outdated,
                       extract(epoch FROM now() - v.created_at)::float8 AS age_s, v.interruption_at
                FROM vms v JOIN pools p ON p.id = v.pool_id
                WHERE v.pool_id = :pool AND v.state <> 'HALTED' ORDER BY v.id""",
            pool=pool_id,
        )
    )


def drain(connection: Connection, vm_ids: Sequence[int]) -> list[int]:
    """Have VMs take no new work; return those that were idle, which are STOPPING now."""
    lock_vms(connection, vm_ids)
    connection.execute(
        text("UPDATE vms SET draining = true WHERE id = ANY(:ids) AND NOT draining"),
        {"ids": list(vm_ids)},
    )
    return close_idle(connection, vm_ids)


def preempted_for(connection: Connection, vm_id: int) -> str | None:
    """Return why others take the VM's place; None: they do not."""
    found: str | None = connection.scalar(
        text("SELECT preempted_for FROM vms WHERE id = :vm"), {"vm": vm_id}
    )
    return found


def end_rollout(connection: Connection, pool_id: int) -> None:
    """Record that every VM of the pool is of its image."""
    connection.execute(
        text("UPDATE pools SET rollout_max_unavailable = NULL WHERE id = :pool"),
        {"pool": pool_id},
    )


def displace(connection: Connection, attempt_ids: Sequence[int]) -> None:
    """Have the jobs of these attempts go first: their VM was taken away."""
    connection.execute(
        text(
            """UPDATE jobs SET displaced = true WHERE state = 'NEW'
               AND id IN (SELECT job_id FROM attempts WHERE id = ANY(:ids))"""
        ),
        {"ids": list(attempt_ids)},
    )


def placed_on(connection: Connection, vm_id: int) -> list[int]:
    """Return the attempts on the VM that have not started."""
    found = rows(
        connection,
        "SELECT id FROM attempts WHERE vm_id = :vm AND state = 'PLACED' ORDER BY id",
        vm=vm_id,
    )
    return [row["id"] for row in found]


# ---- wishes of users


def interrupt_vm(connection: Connection, vm_id: int, *, in_s: float) -> None:
    """Record that the VM will be taken away in `in_s` seconds.

    Raises InstanceNotFound, or IllegalTransition when it is on its way out.
    """
    _must_live(connection, vm_id, "interrupted")
    connection.execute(
        text(
            """UPDATE vms SET interruption_at = now() + make_interval(secs => :in)
               WHERE id = :vm"""
        ),
        {"vm": vm_id, "in": in_s},
    )
    connection.execute(text("SELECT pg_notify('remuda_wake', 'retire')"))


def ask_reboot(connection: Connection, vm_id: int, *, drain: bool) -> None:
    """Have the VM's machine restarted, when its work is done if `drain`; else that is lost.

    Raises InstanceNotFound, or IllegalTransition when it is neither RUNNING nor STALLED.
    """
    state = _must_live(connection, vm_id, "rebooted")
    if state not in (VmState.RUNNING, VmState.STALLED):
        raise IllegalTransition(f"VM {vm_id} is {state} and cannot be rebooted")
    connection.execute(
        text("UPDATE vms SET draining = true, reboot = :how WHERE id = :vm"),
        {"vm": vm_id, "how": "DRAIN" if drain and state == VmState.RUNNING else "NOW"},
    )
    connection.execute(text("SELECT pg_notify('remuda_wake', 'retire')"))


def _must_live(connection: Connection, vm_id: int, what: str) -> str:
    state = lock_vms(connection, [vm_id]).get(vm_id)
    if state is None:
        raise InstanceNotFound(f"there is no VM {vm_id}")
    if state in (VmState.NEW, VmState.STOPPING, VmState.ERROR, VmState.HALTED):
        raise IllegalTransition(f"VM {vm_id} is {state} and cannot be {what}")
    return state


def change_image(
    connection: Connection, pool_id: int, name: str, *, max_unavailable: int | None
) -> None:
    """Have new VMs of the pool made of the image `name`, and if `max_unavailable` the old replaced.

    No more than so many VMs are missing at a time. Raises Refused for a pool that has ended or is
    closing, and for an image in ERROR.
    """
    pool = rows(connection, "SELECT * FROM pools WHERE id = :id FOR NO KEY UPDATE", id=pool_id)[0]
    if pool["state"] not in (*OPEN_POOL, PoolState.FAILURE, PoolState.UNSUBMITTED):
        raise Refused(f"the pool is {pool['state']}; its image cannot be changed")
    if max_unavailable is not None and max_unavailable < 1:
        raise BadInput(f"max_unavailable must be at least 1, not {max_unavailable}")
    image = image_id(connection, pool["provider"], name)
    found = rows(connection, "SELECT state, message FROM images WHERE id = :id", id=image)[0]
    if found["state"] == "ERROR":
        raise Refused(f"image {name} is in ERROR: {found['message'] or 'no VM of it worked'}")
    connection.execute(
        text(
            """UPDATE pools SET image_id = :image, rollout_max_unavailable = :most,
                 rollout_at = CASE WHEN CAST(:most AS int) IS NULL THEN rollout_at ELSE now() END,
                 updated_at = clock_timestamp() WHERE id = :pool"""
        ),
        {"pool": pool_id, "image": image, "most": max_unavailable},
    )
    connection.execute(text("SELECT pg_notify('remuda_wake', 'retire')"))


def rollout(connection: Connection, pool_id: int) -> Mapping[str, Any]:
    """Return how far a rolling update is: (under_way, image, current, outdated, running, message)."""
    return rows(
        connection,
        f"""SELECT p.rollout_max_unavailable IS NOT NULL AS under_way, i.name AS image, p.message,
                  count(v.id) FILTER (WHERE NOT {OUTDATED}) AS current,
                  count(v.id) FILTER (WHERE {OUTDATED}) AS outdated,
                  count(v.id) FILTER (WHERE NOT {OUTDATED} AND v.state = 'RUNNING') AS running
           FROM pools p JOIN images i ON i.id = p.image_id
           LEFT JOIN vms v ON v.pool_id = p.id AND v.state NOT IN ('HALTED', 'STOPPING')
           WHERE p.id = :pool GROUP BY p.id, i.name""",
        pool=pool_id,
    )[0]


# ---- reboots


def reboots(connection: Connection) -> list[Mapping[str, Any]]:
    """Return the VMs that are to be rebooted now, with their state; those still busy left out."""
    return list(
        rows(
            connection,
            f"""SELECT v.id, v.state FROM vms v
                WHERE v.reboot IN ('DRAIN', 'NOW') AND v.state <> 'HALTED'
                  AND NOT (v.reboot = 'DRAIN' AND {_BUSY}) ORDER BY v.id""",
        )
    )


def begin_reboot(connection: Connection, vm_id: int) -> str | None:
    """Lock a VM that is to be rebooted and settle that it is now; return its state.

    None: it is not any more. The wish is dropped where the VM is on its way out, or replaced.
    """
    found = rows(
        connection,
        f"""SELECT v.state, v.replaced, v.reboot, {_BUSY} AS busy FROM vms v
            WHERE v.id = :vm AND v.reboot IN ('DRAIN', 'NOW') FOR NO KEY UPDATE OF v""",
        vm=vm_id,
    )
    if not found or (found[0]["reboot"] == "DRAIN" and found[0]["busy"]):
        return None
    state = str(found[0]["state"])
    fit = state == VmState.RUNNING or (state == VmState.STALLED and not found[0]["replaced"])
    if not fit and state != VmState.WAIT_SSH_CONTEXT:
        connection.execute(text("UPDATE vms SET reboot = NULL WHERE id = :vm"), {"vm": vm_id})
        return None
    connection.execute(
        text(
            """UPDATE vms SET reboot = 'NOW', asked_at = clock_timestamp(), launch_failures = 0,
                 next_try_at = NULL WHERE id = :vm"""
        ),
        {"vm": vm_id},
    )
    return state


def note_told(connection: Connection, vm_id: int) -> None:
    """Record that the machine was told to restart."""
    connection.execute(
        text("UPDATE vms SET reboot = 'TOLD' WHERE id = :vm AND reboot = 'NOW'"), {"vm": vm_id}
    )


def reboot_way(connection: Connection, vm_id: int) -> Mapping[str, Any] | None:
    """Return what it takes to have the VM restart: its channel's columns, its pool's command."""
    found = rows(
        connection,
        """SELECT v.id, v.name, v.address, v.provider_id, p.backend,
                  coalesce(v.provider, p.provider) AS provider,
                  p.settings || v.offer_settings AS settings,
                  p.reboot_command
           FROM vms v JOIN pools p ON p.id = v.pool_id
           WHERE v.id = :vm AND v.state = 'WAIT_SSH_CONTEXT' AND v.reboot = 'NOW'""",
        vm=vm_id,
    )
    return found[0] if found else None


__all__: Sequence[str] = [
    "ages",
    "ask_reboot",
    "begin_reboot",
    "change_image",
    "concerned_pools",
    "displace",
    "drain",
    "end_rollout",
    "interrupt_vm",
    "lock_pool",
    "note_told",
    "placed_on",
    "preempted_for",
    "reboot_way",
    "reboots",
    "rollout",
]
