"""Health checks in the database: which VMs are due, what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows
from remuda.models.vm_life import close_idle

# Who takes a VM on leaves it to nobody else for an interval, so workers share the checks.
_CLAIM = """
    WITH due AS (
      SELECT v.id FROM vms v JOIN pools p ON p.id = v.pool_id
      WHERE v.state = 'RUNNING' AND (CAST(:ids AS bigint[]) IS NULL OR v.id = ANY(:ids))
        AND (v.check_began_at IS NULL OR v.check_began_at < v.running_at
             OR v.check_began_at <= now() - make_interval(secs => p.check_interval_s))
      ORDER BY v.check_began_at NULLS FIRST, v.id LIMIT :most FOR NO KEY UPDATE OF v SKIP LOCKED
    )
    UPDATE vms v SET check_began_at = now() FROM due, pools p
    WHERE v.id = due.id AND p.id = v.pool_id
    RETURNING v.id, v.name, v.address, v.provider_id, v.pool_id, p.backend,
      coalesce(v.provider, p.provider) AS provider, p.settings || v.offer_settings AS settings,
      p.name AS pool_name, p.constants, p.check_timeout_s, p.min_free_disk_bytes, p.health_command
"""

_RECORD = """
    WITH r AS (
      SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id bigint, error text)
    ), locked AS (
      SELECT v.id, r.error FROM r JOIN vms v ON v.id = r.id WHERE v.state = 'RUNNING'
      ORDER BY v.id FOR NO KEY UPDATE OF v
    ), v AS (
      UPDATE vms SET checked_at = now(), check_error = left(locked.error, 2000),
        check_failures = CASE WHEN locked.error IS NULL THEN 0 ELSE check_failures + 1 END
      FROM locked WHERE vms.id = locked.id
      RETURNING vms.id, vms.pool_id, vms.draining, vms.check_failures, vms.check_error
    )
    SELECT v.id, v.pool_id, v.check_failures AS failures, v.check_error AS error,
           EXISTS (SELECT FROM attempts a WHERE a.vm_id = v.id
                   AND a.state IN ('PLACED', 'STARTED', 'EXITED'))
           OR EXISTS (SELECT FROM leases l WHERE l.vm_id = v.id AND NOT l.for_jobs
                      AND l.released_at IS NULL) AS busy
    FROM v JOIN pools p ON p.id = v.pool_id
    WHERE NOT v.draining AND v.check_failures > p.max_check_fails ORDER BY v.id
"""


def claim_due(
    connection: Connection, *, most: int, vm_ids: Sequence[int] | None = None
) -> list[Mapping[str, Any]]:
    """Take on up to `most` running VMs whose check is due (of `vm_ids`, if given)."""
    ids = list(vm_ids) if vm_ids is not None else None
    return list(rows(connection, _CLAIM, ids=ids, most=most))


def record(connection: Connection, errors: Mapping[int, str | None]) -> list[Mapping[str, Any]]:
    """Record the checks by VM, None for a good one; return those that failed too often in a row."""
    payload = json.dumps([{"id": vm_id, "error": error} for vm_id, error in errors.items()])
    return list(rows(connection, _RECORD, rows=payload))


def standing(connection: Connection, pool_id: int) -> tuple[int, int]:
    """Return how many of the pool's VMs run, and how many of these drain."""
    found = rows(
        connection,
        """SELECT count(*) AS running, count(*) FILTER (WHERE draining) AS draining
           FROM vms WHERE pool_id = :pool AND state = 'RUNNING'""",
        pool=pool_id,
    )[0]
    return found["running"], found["draining"]


def give_up(connection: Connection, errors: Mapping[int, str]) -> list[int]:
    """Have VMs take no new work, for these reasons; return the idle ones, which are STOPPING now."""
    payload = json.dumps([{"id": vm_id, "error": error} for vm_id, error in errors.items()])
    connection.execute(
        text(
            """WITH locked AS (
                 SELECT v.id, r.error
                 FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id bigint, error text)
                 JOIN vms v ON v.id = r.id ORDER BY v.id FOR NO KEY UPDATE OF v
               )
               UPDATE vms SET draining = true, error = left(locked.error, 2000)
               FROM locked WHERE vms.id = locked.id"""
        ),
        {"rows": payload},
    )
    return close_idle(connection, sorted(errors))
