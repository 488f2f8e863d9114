"""Launches of VMs: what they wait for, which offer they are made from, what went wrong with them.

Every function locks as all do: the pool's row first, then the VM's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import Refused, UnknownPool
from remuda.models.database import rows
from remuda.models.pool_life import image_id
from remuda.models.sql import READY, sql_list
from remuda.models.states import OPEN_POOL, VmState
from remuda.models.trace_source import boot_s
from remuda.offers import Offer, offers_for

LAUNCHING = (
    VmState.NEW,
    VmState.SUBMITTED,
    VmState.WAIT_SSH_CONTEXT,
    VmState.CONTEXTUALIZING,
)

_POOL = """
    SELECT p.id, p.name, p.provider, p.settings, p.offers, i.name AS image, p.max_starting,
           p.spawn_interval_s, p.last_spawn_at, p.paused_until, p.launch_timeout_s, p.launch_retries,
           p.launch_failures, p.offer_order, p.uuid::text AS uuid, p.slots_per_vm,
           p.memory_bytes_per_vm, p.reserved_group
    FROM pools p JOIN images i ON i.id = p.image_id WHERE p.id = :pool FOR NO KEY UPDATE OF p
"""
_VM = f"""
    SELECT id, name, state, token::text AS token, spawn_calls, empty_calls, offer, price,
           launch_failures, asked_at, next_try_at, coalesce(next_try_at > now(), false) AS waits
    FROM vms WHERE id = :vm AND state IN ({sql_list(LAUNCHING)}) FOR NO KEY UPDATE
"""
_STARTING = f"""
    SELECT count(*) FROM vms WHERE pool_id = :pool AND id <> :vm
      AND state IN ({sql_list(LAUNCHING)}) AND (state <> 'NEW' OR spawn_calls > 0)
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """A VM on its launch and its pool, both locked, with what its next step depends on.

    `starting`: the pool's other VMs that were asked for and do not run yet. `deadline`: when a VM
    must be asked for at the latest, told only where the order of the pool's offers depends on it.
    """

    now: datetime
    vm: Mapping[str, Any]
    pool: Mapping[str, Any]
    starting: int
    refusals: Sequence[Mapping[str, Any]]
    broken_images: Mapping[tuple[str, str], str]
    deadline: datetime | None = None


# When the first of the jobs that wait must be running, but for the time VMs took to start lately.
_DEADLINE = f"""
    SELECT min(j.submitted_at + make_interval(secs => j.max_queue_s))
           - make_interval(secs => :boot)
    FROM jobs j WHERE {READY} AND j.max_queue_s IS NOT NULL AND j.epoch = 0
      AND (j.pool_ids IS NULL AND j.pool_id = :pool
           OR j.pool_ids IS NOT NULL AND j.pool_ids @> ARRAY[CAST(:pool AS bigint)])
"""
_USUAL_BOOT_S = 120.0  # where no VM of the pool has started yet


def lock_launch(connection: Connection, vm_id: int) -> Standing | None:
    """Lock a VM that is being launched, and its pool; None if it is not any more."""
    pool_id = connection.scalar(text("SELECT pool_id FROM vms WHERE id = :vm"), {"vm": vm_id})
    if pool_id is None:
        return None
    pool = rows(connection, _POOL, pool=pool_id)[0]
    found = rows(connection, _VM, vm=vm_id)
    if not found:
        return None
    broken = rows(
        connection,
        "SELECT provider, name, coalesce(message, '') AS message FROM images WHERE state = 'ERROR'",
    )
    return Standing(
        now=connection.execute(text("SELECT clock_timestamp()")).scalar_one(),
        vm=found[0],
        pool=pool,
        starting=connection.execute(text(_STARTING), {"pool": pool_id, "vm": vm_id}).scalar_one(),
        refusals=refusals(connection, pool_id),
        broken_images={(row["provider"], row["name"]): row["message"] for row in broken},
        deadline=_deadline(connection, pool_id) if pool["offer_order"] == "deadline" else None,
    )


def offers_of_pool(pool: Mapping[str, Any]) -> tuple[Offer, ...]:
    """Return the offers of a pool (provider, image, settings, offers), as they are listed."""
    return offers_for(
        pool["offers"], provider=pool["provider"], image=pool["image"], settings=pool["settings"]
    )


def _deadline(connection: Connection, pool_id: int) -> datetime | None:
    boot = boot_s(connection, pool_id)
    values = {"pool": pool_id, "boot": _USUAL_BOOT_S if boot is None else boot}
    found: datetime | None = connection.scalar(text(_DEADLINE), values)
    return found


def refusals(connection: Connection, pool_id: int) -> Sequence[Mapping[str, Any]]:
    """Return (offer, reason, times, expires_at) of what the pool was refused and may not ask yet."""
    return rows(
        connection,
        """SELECT offer, reason, times, refused_at, expires_at FROM offer_refusals
           WHERE pool_id = :pool AND expires_at > now() ORDER BY refused_at, offer""",
        pool=pool_id,
    )


def note_spawn(
    connection: Connection,
    standing: Standing,
    *,
    offer: str,
    provider: str,
    image: str,
    settings: Mapping[str, Any],
    price: float | None,
) -> None:
    """Record that the provider is about to be asked for a NEW VM, and from which offer."""
    connection.execute(
        text(
            """UPDATE vms SET spawn_calls = spawn_calls + 1, asked_at = coalesce(asked_at, now()),
                 next_try_at = NULL, offer = :offer, price = :price, image_id = :image,
                 provider = :provider, offer_settings = CAST(:settings AS jsonb)
               WHERE id = :vm AND state = 'NEW'"""
        ),
        {
            "vm": standing.vm["id"],
            "offer": offer,
            "price": price,
            "image": image_id(connection, provider, image),
            "provider": provider if provider != standing.pool["provider"] else None,
            "settings": json.dumps(dict(settings)),
        },
    )
    if standing.vm["spawn_calls"] == 0:
        connection.execute(
            text("UPDATE pools SET last_spawn_at = clock_timestamp() WHERE id = :pool"),
            {"pool": standing.pool["id"]},
        )


def made_nothing(connection: Connection, row: Mapping[str, Any]) -> bool:
    """Note that the call for a VM, begun with this row, left no machine; True if none did so far."""
    told = {"vm": row["id"], "token": row["token"], "call": row["spawn_calls"]}
    connection.execute(
        text(
            "UPDATE vms SET empty_calls = :call WHERE id = :vm AND token = :token"
            " AND spawn_calls = :call AND empty_calls = :call - 1"
        ),
        told,
    )
    query = text("SELECT empty_calls = spawn_calls FROM vms WHERE id = :vm")
    return bool(connection.scalar(query, {"vm": row["id"]}))


def hold_vm(connection: Connection, vm_id: int, *, delay_s: float) -> None:
    """Have nothing be tried with the VM for so many seconds."""
    connection.execute(
        text(
            "UPDATE vms SET next_try_at = clock_timestamp() + make_interval(secs => :delay)"
            " WHERE id = :vm"
        ),
        {"vm": vm_id, "delay": delay_s},
    )


def begin_try(connection: Connection, vm_id: int) -> bool:
    """Note that the VM's next step is tried now; False if it is not due yet."""
    done = connection.execute(
        text(
            """UPDATE vms SET next_try_at = NULL
               WHERE id = :vm AND (next_try_at IS NULL OR next_try_at <= clock_timestamp())"""
        ),
        {"vm": vm_id},
    )
    return done.rowcount == 1


def try_again(connection: Connection, vm_id: int, *, delay_s: float, error: str) -> None:
    """Count a failure of the VM's present step and have it tried again after so many seconds."""
    connection.execute(
        text(
            """UPDATE vms SET launch_failures = launch_failures + 1, error = :error,
                 next_try_at = clock_timestamp() + make_interval(secs => :delay)
               WHERE id = :vm"""
        ),
        {"vm": vm_id, "delay": delay_s, "error": error[:2000]},
    )


def due_launches(connection: Connection) -> list[int]:
    """Return the VMs whose launch waited for its time, which has come."""
    found = rows(
        connection,
        f"""SELECT id FROM vms WHERE state IN ({sql_list(LAUNCHING)}) AND next_try_at <= now()
            ORDER BY next_try_at, id LIMIT 500""",
    )
    return [row["id"] for row in found]


def refuse(
    connection: Connection, pool_id: int, offer: str, *, reason: str, times: int, seconds: float
) -> None:
    """Remember that an offer has no capacity or quota: it is not asked for so many seconds."""
    connection.execute(
        text(
            """INSERT INTO offer_refusals AS r (pool_id, offer, reason, times, expires_at)
               VALUES (:pool, :offer, :reason, :times,
                       clock_timestamp() + make_interval(secs => :seconds))
               ON CONFLICT (pool_id, offer) DO UPDATE SET reason = excluded.reason,
                 times = excluded.times, refused_at = now(), expires_at = excluded.expires_at"""
        ),
        {
            "pool": pool_id,
            "offer": offer,
            "reason": reason[:2000],
            "times": times,
            "seconds": seconds,
        },
    )


def times_refused(connection: Connection, pool_id: int, offer: str) -> int:
    """Return how many times in a row the offer was refused lately, before the one in force."""
    found = connection.scalar(
        text(
            """SELECT times - (expires_at > clock_timestamp())::int FROM offer_refusals
               WHERE pool_id = :pool AND offer = :offer
                 AND expires_at > clock_timestamp() - interval '15 minutes'"""
        ),
        {"pool": pool_id, "offer": offer},
    )
    return int(found or 0)


def next_offer(connection: Connection, vm_id: int) -> None:
    """Make the VM an intent anew, with a token of its own, for another offer."""
    connection.execute(
        text(
            """UPDATE vms SET token = gen_random_uuid(), spawn_calls = 0, empty_calls = 0,
                 launch_failures = 0, next_try_at = NULL WHERE id = :vm AND state = 'NEW'"""
        ),
        {"vm": vm_id},
    )


def hold_pool(connection: Connection, pool_id: int, *, until: datetime, reason: str) -> None:
    """Have the pool ask for no VM until then: nothing failed, there is just nothing to be had."""
    connection.execute(
        text(
            "UPDATE pools SET paused_until = :until, message = :reason,"
            " paused_at = coalesce(paused_at, now()) WHERE id = :pool"
        ),
        {"pool": pool_id, "until": until, "reason": reason[:2000]},
    )


def pause_pool(connection: Connection, pool_id: int, *, seconds: float, reason: str) -> None:
    """Bring the pool to FAILURE, with the reason, for so many seconds."""
    pauses = f"state IN ({sql_list(OPEN_POOL)})"
    connection.execute(
        text(
            f"""UPDATE pools SET launch_failures = launch_failures + 1, message = :reason,
                 paused_until = clock_timestamp() + make_interval(secs => :seconds),
                 paused_at = coalesce(paused_at, clock_timestamp()),
                 state = CASE WHEN {pauses} THEN 'FAILURE' ELSE state END,
                 previous_state_changed_at = CASE WHEN {pauses} THEN state_changed_at
                   ELSE previous_state_changed_at END,
                 state_changed_at = CASE WHEN {pauses} THEN now() ELSE state_changed_at END
               WHERE id = :pool"""
        ),
        {"pool": pool_id, "seconds": seconds, "reason": reason[:2000]},
    )


def forget_refusals(connection: Connection, pool_id: int, offer: str) -> None:
    """Forget that the pool was refused an offer: a VM of it runs."""
    connection.execute(
        text("DELETE FROM offer_refusals WHERE pool_id = :pool AND offer = :offer"),
        {"pool": pool_id, "offer": offer},
    )


def resume_pool(connection: Connection, pool_id: int) -> None:
    """Forget all that keeps the pool from asking for VMs: failures, the pause, what was refused.

    Raises UnknownPool, or Refused when it is closing or closed.
    """
    done = connection.execute(
        text(
            f"""UPDATE pools SET launch_failures = 0, paused_until = NULL, paused_at = NULL,
                 message = NULL, last_resize_at = NULL
               WHERE id = :pool AND state IN ('FAILURE', {sql_list(OPEN_POOL)})"""
        ),
        {"pool": pool_id},
    )
    if done.rowcount == 0:
        state = connection.scalar(text("SELECT state FROM pools WHERE id = :id"), {"id": pool_id})
        if state is None:
            raise UnknownPool(f"there is no pool with id {pool_id}")
        raise Refused(f"the pool is {state}: it makes no VMs that it could resume")
    connection.execute(text("DELETE FROM offer_refusals WHERE pool_id = :pool"), {"pool": pool_id})
    connection.execute(
        text(
            """UPDATE vms SET next_try_at = now()
               WHERE pool_id = :pool AND state = 'NEW' AND next_try_at IS NOT NULL"""
        ),
        {"pool": pool_id},
    )
    connection.execute(text("SELECT pg_notify('remuda_wake', 'pool')"))
