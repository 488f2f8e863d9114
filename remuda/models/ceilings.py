"""Limits of slots over several pools: how much of them is used, and by whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows
from remuda.models.sql import RETURNS, sql_list
from remuda.models.states import OPEN_POOL, PoolState

_LOCK = 0x52454D43  # "REMC": pools that share a ceiling grow one after the other


def lock(connection: Connection) -> None:
    """Keep others from sizing pools until the transaction ends, so that no ceiling is passed."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def usage(connection: Connection) -> Sequence[Mapping[str, Any]]:
    """Return each pool's {id, sizing_group, slots_per_vm, flex}, and the rest in slots.

    `used` counts every machine that is not confirmed gone, `alive` those that take work or will;
    `floor`: what an open pool is never to be below. `short`: what its work needs and others keep from
    it; `leaving`: of used, what ends now or is preempted.
    """
    return rows(
        connection,
        f"""SELECT p.id, p.sizing_group, p.slots_per_vm, coalesce(v.used, 0)::int AS used,
                   coalesce(v.alive, 0)::int AS alive, coalesce(v.leaving, 0)::int AS leaving,
                   p.scheduling_type = 'flex' AS flex,
                   CASE WHEN p.state IN ({sql_list(OPEN_POOL)}) THEN p.short_slots ELSE 0 END AS short,
                   CASE WHEN p.state NOT IN ({sql_list((*OPEN_POOL, PoolState.FAILURE))}) THEN 0
                        WHEN p.policy_name IS NOT NULL THEN p.policy_minimum_slots
                        WHEN p.is_elastic THEN p.elastic_minimum_slots
                        ELSE p.instance_count * p.slots_per_vm END AS floor
            FROM pools p LEFT JOIN (
              SELECT pool_id, sum(slots) AS used, sum(slots) FILTER (WHERE (NOT draining OR {RETURNS})
                       AND state NOT IN ('STOPPING', 'STALLED', 'ERROR')) AS alive,
                     sum(slots) FILTER (WHERE state = 'STOPPING' OR preempted_for IS NOT NULL)
                       AS leaving
              FROM vms v WHERE state <> 'HALTED' GROUP BY pool_id) v ON v.pool_id = p.id
            WHERE p.state NOT IN ('UNSUBMITTED', 'CLOSED', 'PENDING_DELETE')
            ORDER BY p.id""",
    )
