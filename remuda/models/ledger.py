"""The ledger of machines: pools to compare with their providers, machines that no VM owns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import Refused, UnknownPool
from remuda.models.database import rows
from remuda.models.states import PoolState

# Ended ones for a day more, or as long as something of theirs is left.
_CLAIM = """
    WITH due AS (
      SELECT id FROM pools p
      WHERE state <> 'UNSUBMITTED'
        AND (ended_at IS NULL OR ended_at > now() - interval '1 day'
             OR state = 'PENDING_DELETE' AND deleted_at IS NULL
             OR EXISTS (SELECT FROM unowned_machines u WHERE u.pool_id = p.id
                        AND u.gone_at IS NULL))
        AND (reconcile_began_at IS NULL
             OR reconcile_began_at < now() - make_interval(secs => :every))
      ORDER BY reconcile_began_at NULLS FIRST, id LIMIT :most
      FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE pools SET reconcile_began_at = now() FROM due WHERE pools.id = due.id
    RETURNING pools.id, pools.name, pools.uuid::text AS tag
"""

_UNOWNED = text("""
    INSERT INTO unowned_machines (provider, provider_id, tag, pool_id, token)
    SELECT :provider, r.provider_id, r.tag, p.id, r.token
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(provider_id text, tag text, token text)
    LEFT JOIN pools p ON p.uuid::text = r.tag
    ORDER BY r.provider_id
    ON CONFLICT (provider, tag, provider_id) WHERE gone_at IS NULL
      DO UPDATE SET last_seen_at = now()
""")

_LEAKS = """
    SELECT u.*, p.name AS pool,
           extract(epoch FROM coalesce(u.gone_at, now()) - u.first_seen_at)::float8 AS unowned_s
    FROM unowned_machines u LEFT JOIN pools p ON p.id = u.pool_id
"""


def claim_pools(connection: Connection, *, every_s: float, most: int) -> list[Mapping[str, Any]]:
    """Take on up to `most` pools that nobody compared for `every_s` seconds; the longest ago first."""
    return list(rows(connection, _CLAIM, every=every_s, most=most))


def books(connection: Connection, pool_id: int) -> tuple[Mapping[str, Any], list[Any]]:
    """Return the pool's row with the time it is (`now`), and its VMs that are not HALTED."""
    pool = rows(connection, "SELECT *, now() AS now FROM pools WHERE id = :id", id=pool_id)[0]
    vms = rows(
        connection,
        """SELECT v.id, v.state, v.provider_id, v.token::text AS token, v.state_changed_at AS since,
                  v.interruption_at, coalesce(v.provider, p.provider) AS provider,
                  p.settings || v.offer_settings AS settings
           FROM vms v JOIN pools p ON p.id = v.pool_id
           WHERE v.pool_id = :id AND v.state <> 'HALTED' ORDER BY v.id""",
        id=pool_id,
    )
    return pool, list(vms)


def note_unowned(
    connection: Connection, provider: str, machines: Sequence[Mapping[str, str]]
) -> None:
    """Record machines (provider_id, tag, token) that no VM owns; known ones were seen again."""
    if machines:
        payload = json.dumps([dict(machine) for machine in machines])
        connection.execute(_UNOWNED, {"provider": provider, "rows": payload})


def unseen(
    connection: Connection, pool_id: int, provider_ids: Sequence[str]
) -> list[Mapping[str, Any]]:
    """Return up to 500 unowned machines (id, provider, provider_id) of the pool but those listed."""
    found = rows(
        connection,
        """SELECT u.id, u.provider, u.provider_id FROM unowned_machines u
           LEFT JOIN unnest(CAST(:seen AS text[])) AS s(provider_id) USING (provider_id)
           WHERE u.pool_id = :pool AND u.gone_at IS NULL AND s.provider_id IS NULL
           ORDER BY u.last_seen_at, u.id LIMIT 500""",
        pool=pool_id,
        seen=list(provider_ids),
    )
    return list(found)


def note_gone(connection: Connection, ids: Sequence[int]) -> None:
    """Record that unowned machines are there no longer, or are owned after all."""
    if ids:
        connection.execute(
            text(
                """UPDATE unowned_machines SET gone_at = now()
                   WHERE id = ANY(:ids) AND gone_at IS NULL"""
            ),
            {"ids": list(ids)},
        )


def to_terminate(
    connection: Connection, pool_id: int, *, grace_s: float, most: int
) -> list[Mapping[str, Any]]:
    """Return the pool's unowned machines past their grace, at most so many; the oldest first.

    Asked for again every minute until the provider has them no longer. One without a token was
    not made by us: it is never touched.
    """
    return list(
        rows(
            connection,
            """SELECT id, provider, provider_id FROM unowned_machines
               WHERE pool_id = :pool AND gone_at IS NULL AND token <> ''
                 AND first_seen_at <= now() - make_interval(secs => :grace)
                 AND (terminated_at IS NULL OR terminated_at < now() - interval '1 minute')
               ORDER BY terminate_calls, id LIMIT :most""",
            pool=pool_id,
            grace=grace_s,
            most=most,
        )
    )


def note_terminations(connection: Connection, errors: Mapping[int, str | None]) -> None:
    """Record the calls to terminate unowned machines, by id: None, or how each failed."""
    if errors:
        payload = json.dumps([{"id": i, "error": error} for i, error in errors.items()])
        connection.execute(
            text(
                """UPDATE unowned_machines u SET terminate_calls = terminate_calls + 1,
                     error = left(r.error, 2000),
                     terminated_at = CASE WHEN r.error IS NULL THEN now() ELSE terminated_at END
                   FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id bigint, error text)
                   WHERE u.id = r.id"""
            ),
            {"rows": payload},
        )


def freeze(connection: Connection, pool_id: int, reason: str) -> None:
    """Have nothing believed of the pool's losses for now, and nothing sized."""
    connection.execute(
        text(
            """UPDATE pools SET frozen_at = now(), frozen_reason = :reason
               WHERE id = :pool AND frozen_at IS NULL"""
        ),
        {"pool": pool_id, "reason": reason[:2000]},
    )


def note_reconciled(connection: Connection, pool_id: int, *, thaw: bool) -> None:
    """Record that the provider told all it has; `thaw`: the pool's losses are settled."""
    thawed = ", frozen_at = NULL, frozen_reason = NULL, loss_confirmed_at = NULL" if thaw else ""
    connection.execute(
        text(f"UPDATE pools SET reconciled_at = now(){thawed} WHERE id = :pool"),
        {"pool": pool_id},
    )


def confirm_loss(connection: Connection, pool_id: int) -> None:
    """Have the loss that froze the pool believed; raises Refused if it is not frozen."""
    done = connection.execute(
        text(
            """UPDATE pools SET loss_confirmed_at = now(), reconcile_began_at = NULL
               WHERE id = :pool AND frozen_at IS NOT NULL"""
        ),
        {"pool": pool_id},
    )
    if done.rowcount:
        return
    if connection.scalar(text("SELECT true FROM pools WHERE id = :id"), {"id": pool_id}) is None:
        raise UnknownPool(f"there is no pool with id {pool_id}")
    raise Refused("the pool is not frozen", hint="there is no loss to confirm")


def note_interruptions(connection: Connection, times: Mapping[int, Any]) -> None:
    """Record when the provider will take VMs away."""
    for vm_id, at in sorted(times.items()):
        connection.execute(
            text("UPDATE vms SET interruption_at = :at WHERE id = :vm"), {"vm": vm_id, "at": at}
        )


def finish_delete(connection: Connection, pool_id: int) -> bool:
    """Mark a pool to be deleted as deleted if nothing of it is left; True if it is so now.

    Its provider must just have said that it has none of its machines.
    """
    done = connection.execute(
        text(
            """UPDATE pools SET deleted_at = now()
               WHERE id = :pool AND state = :state AND deleted_at IS NULL
                 AND NOT EXISTS (SELECT FROM vms WHERE pool_id = :pool AND state <> 'HALTED')
                 AND NOT EXISTS (SELECT FROM unowned_machines WHERE pool_id = :pool
                                 AND gone_at IS NULL)"""
        ),
        {"pool": pool_id, "state": PoolState.PENDING_DELETE},
    )
    if done.rowcount:
        connection.execute(text("SELECT pg_notify('remuda_wake', 'deleted')"))
    return bool(done.rowcount)


def leftovers(connection: Connection, pool_id: int) -> Mapping[str, Any]:
    """Return what of a pool is left: (vms, machines without a VM), and whether it is deleted."""
    return rows(
        connection,
        """SELECT p.deleted_at, p.reconciled_at,
                  (SELECT count(*) FROM vms WHERE pool_id = p.id AND state <> 'HALTED') AS vms,
                  (SELECT count(*) FROM unowned_machines WHERE pool_id = p.id
                     AND gone_at IS NULL) AS unowned
           FROM pools p WHERE p.id = :pool""",
        pool=pool_id,
    )[0]


def leaks(connection: Connection, *, gone: bool = False) -> list[Mapping[str, Any]]:
    """Return the machines no VM owns, with `unowned_s`; those of others (`pool` None) last."""
    where = "" if gone else "WHERE u.gone_at IS NULL"
    return list(rows(connection, f"{_LEAKS} {where} ORDER BY u.pool_id IS NULL, u.id"))


def unowned_seconds(connection: Connection, *, grace_s: float = 0.0) -> float:
    """Return the VM-seconds that machines of ours were there without a VM, past their grace."""
    found = connection.scalar(
        text(
            """SELECT coalesce(sum(greatest(0, extract(epoch FROM
                 coalesce(gone_at, now()) - first_seen_at) - :grace)), 0)::float8
               FROM unowned_machines WHERE pool_id IS NOT NULL"""
        ),
        {"grace": grace_s},
    )
    return float(found)


def our_tags(connection: Connection, tags: Sequence[str]) -> dict[str, int]:
    """Return which of the tags are UUIDs of pools of this database, with the pools' ids."""
    found = rows(
        connection,
        "SELECT uuid::text AS tag, id FROM pools WHERE uuid::text = ANY(:tags)",
        tags=list(tags),
    )
    return {row["tag"]: row["id"] for row in found}


def forget_foreign(connection: Connection, provider: str) -> None:
    """Close the books on machines of others that were not seen for ten minutes."""
    connection.execute(
        text(
            """UPDATE unowned_machines SET gone_at = now()
               WHERE pool_id IS NULL AND provider = :provider AND gone_at IS NULL
                 AND last_seen_at < now() - interval '10 minutes'"""
        ),
        {"provider": provider},
    )


def is_over(connection: Connection, pool_id: int) -> bool:
    """Return whether the pool ended so long ago that it is not compared any more."""
    found = connection.scalar(
        text(
            """SELECT ended_at < now() - interval '1 day'
               AND (state <> 'PENDING_DELETE' OR deleted_at IS NOT NULL)
               FROM pools WHERE id = :pool"""
        ),
        {"pool": pool_id},
    )
    return bool(found)
