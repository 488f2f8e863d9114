"""VMs of flex pools that make room for others' work: who waits, what may go, and what is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows
from remuda.models.sql import sql_list
from remuda.models.states import OPEN_POOL, VmState
from remuda.models.vm_life import close_idle, lock_vms

_STAYING = (
    VmState.NEW,
    VmState.SUBMITTED,
    VmState.WAIT_SSH_CONTEXT,
    VmState.CONTEXTUALIZING,
    VmState.RUNNING,
)
_HOST = "regexp_replace(v.provider_id, '#[0-9a-f]{12}$', '')"

# Those of a frozen pool are let alone: nothing is known of them. So is what somebody has leased.
_FLEX = f"""
    SELECT v.id, v.pool_id, v.slots, v.state = 'RUNNING' AS running,
           coalesce((SELECT sum(a.cores * extract(epoch FROM now() - a.started_at))
             FROM attempts a WHERE a.vm_id = v.id AND a.state IN ('STARTED', 'EXITED')), 0)::float8
             AS lost_s,
           CASE WHEN coalesce(v.provider, p.provider) = 'static' THEN {_HOST} END AS host
    FROM vms v JOIN pools p ON p.id = v.pool_id
    WHERE p.scheduling_type = 'flex' AND p.frozen_at IS NULL AND v.preempted_for IS NULL
      AND v.state IN ({sql_list(_STAYING)}) AND v.reboot IS NULL
      AND NOT EXISTS (SELECT FROM leases l WHERE l.vm_id = v.id AND NOT l.for_jobs
                      AND l.released_at IS NULL)
    ORDER BY v.id
"""


def wishes(connection: Connection) -> list[Mapping[str, Any]]:
    """Return the pools whose work waits for others to make room, who has waited longest first."""
    return list(
        rows(
            connection,
            f"""SELECT id, name, provider, settings, offers, slots_per_vm, memory_bytes_per_vm,
                       reserved_group, short_slots, decision ->> 'step' = 'paused' AS for_hosts
                FROM pools WHERE short_slots > 0 AND state IN ({sql_list(OPEN_POOL)})
                  AND frozen_at IS NULL ORDER BY short_since, id""",
        )
    )


def flex_vms(connection: Connection) -> list[Mapping[str, Any]]:
    """Return the VMs that may go; see `remuda.workers.preemption.FlexVm`."""
    return list(rows(connection, _FLEX))


def hosts_coming(connection: Connection, pool_id: int, hosts: Sequence[str]) -> tuple[int, int]:
    """Return how many of these hosts end what they have, and how many did since a pool was refused.

    Those that were claimed again meanwhile are not counted.
    """
    found = rows(
        connection,
        f"""WITH last AS (
              SELECT DISTINCT ON ({_HOST}) v.state, v.halted_at, v.preempted_for
              FROM vms v JOIN pools p ON p.id = v.pool_id
              WHERE coalesce(v.provider, p.provider) = 'static' AND v.provider_id IS NOT NULL
                AND {_HOST} = ANY(:hosts)
                AND (v.state <> 'HALTED' OR v.halted_at > now() - interval '15 minutes')
              ORDER BY {_HOST}, v.id DESC)
            SELECT count(*) FILTER (WHERE state = 'STOPPING' OR state <> 'HALTED'
                     AND preempted_for IS NOT NULL) AS leaving,
                   count(*) FILTER (WHERE halted_at > (SELECT max(refused_at) FROM offer_refusals
                     WHERE pool_id = :pool)) AS free
            FROM last""",
        pool=pool_id,
        hosts=list(hosts),
    )[0]
    return int(found["leaving"]), int(found["free"])


def ask_again(connection: Connection, pool_id: int) -> None:
    """Have a pool ask anew for what it was refused: there is a free host now.

    The refusals stay, expired, until it has one.
    """
    connection.execute(
        text(
            """UPDATE offer_refusals SET expires_at = now()
               WHERE pool_id = :pool AND expires_at > now()"""
        ),
        {"pool": pool_id},
    )
    connection.execute(
        text(
            """UPDATE pools SET paused_until = NULL, paused_at = NULL, message = NULL
               WHERE id = :pool AND launch_failures = 0 AND paused_until IS NOT NULL"""
        ),
        {"pool": pool_id},
    )


def waiting_for(connection: Connection, pool_id: int) -> list[Mapping[str, Any]]:
    """Return the pools, not flex, that wait for a host of a shelf or ask for one just now."""
    return list(
        rows(
            connection,
            f"""SELECT id, name, provider, settings, offers FROM pools p
                WHERE id <> :pool AND scheduling_type <> 'flex' AND state IN ({sql_list(OPEN_POOL)})
                  AND (provider = 'static' OR offers @> '[{{"provider": "static"}}]')
                  AND (short_slots > 0 OR (
                    EXISTS (SELECT FROM offer_refusals r WHERE r.pool_id = p.id
                              AND r.refused_at > now() - interval '15 minutes')
                    AND EXISTS (SELECT FROM vms v WHERE v.pool_id = p.id AND v.state = 'NEW')))
                ORDER BY short_since, id""",
            pool=pool_id,
        )
    )


def mark(connection: Connection, vms: Mapping[int, str], *, grace_s: float) -> list[int]:
    """Have VMs make room, each for the reason told: they drain, and end after the grace in any case.

    Returns those it concerned.
    """
    lock_vms(connection, list(vms))
    return list(
        connection.scalars(
            text(
                f"""UPDATE vms SET draining = true, preempted_for = r.why,
                      interruption_at = least(interruption_at,
                                              now() + make_interval(secs => :grace))
                    FROM unnest(CAST(:ids AS bigint[]), CAST(:whys AS text[])) AS r(id, why)
                    WHERE vms.id = r.id AND preempted_for IS NULL
                      AND state IN ({sql_list(_STAYING)}) RETURNING vms.id"""
            ),
            {"ids": list(vms), "whys": list(vms.values()), "grace": grace_s},
        )
    )


def end_idle(connection: Connection) -> list[int]:
    """Bring the preempted VMs that have nothing any more to STOPPING; return them."""
    there = connection.scalars(
        text(
            f"""SELECT id FROM vms WHERE preempted_for IS NOT NULL AND state <> 'HALTED'
                AND state IN ({sql_list(_STAYING)}) ORDER BY id"""
        )
    ).all()
    return close_idle(connection, list(there)) if there else []


def still_at_work(connection: Connection) -> list[Mapping[str, Any]]:
    """Return (vm_id, attempt_ids) of preempted VMs with attempts that are to end."""
    return list(
        rows(
            connection,
            """SELECT a.vm_id, array_agg(a.id ORDER BY a.id) AS attempt_ids
               FROM vms v JOIN attempts a ON a.vm_id = v.id AND a.state IN ('PLACED', 'STARTED')
               WHERE v.preempted_for IS NOT NULL AND v.state = 'RUNNING' GROUP BY a.vm_id
               ORDER BY a.vm_id""",
        )
    )
