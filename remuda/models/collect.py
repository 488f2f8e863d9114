"""The end of a job: outputs fetched (or lost with the VM), the one terminal record written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows
from remuda.models.exits import Outcome, count_retries, insert_outputs, release_idle_leases

_FINISH = text("""
    WITH r AS (
      SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
        attempt_id bigint, state text, job_state text, reason text, message text,
        failure boolean, loss boolean, delay_s float8, memory_bytes bigint, displaced boolean)
    ), a AS (
      UPDATE attempts t SET state = r.state, reason = r.reason, message = r.message,
        pending = NULL
      FROM r WHERE t.id = r.attempt_id AND t.vm_id = :vm AND t.state = 'EXITED'
      RETURNING t.id, t.job_id, t.epoch, r.job_state, r.reason, r.message, r.failure, r.loss,
                r.delay_s, r.memory_bytes, r.displaced
    )
    UPDATE jobs SET
      displaced = jobs.displaced OR a.displaced,
      memory_bytes = coalesce(a.memory_bytes, jobs.memory_bytes),
      state = a.job_state, message = a.message,
      started_at = CASE WHEN a.job_state <> 'NEW' THEN started_at END,
      exit_code = CASE WHEN a.job_state <> 'NEW' THEN exit_code END,
      signal = CASE WHEN a.job_state <> 'NEW' THEN signal END,
      ended_at = CASE WHEN a.job_state = 'TERMINATED' THEN now() END,
      reason = CASE WHEN a.job_state = 'TERMINATED' THEN a.reason END,
      failures = failures + a.failure::int, losses = losses + a.loss::int,
      not_before = CASE WHEN a.job_state = 'NEW' AND a.delay_s > 0
                        THEN now() + make_interval(secs => a.delay_s) END
    FROM a WHERE jobs.id = a.job_id AND jobs.epoch = a.epoch AND jobs.state = 'TERMINATING'
    RETURNING a.id, jobs.array_id, a.job_state = 'NEW' AND a.failure AS retried
""")


def finish(
    connection: Connection,
    vm_id: int,
    outcomes: Sequence[Outcome],
    outputs: Sequence[Mapping[str, Any]] = (),
) -> set[int]:
    """End EXITED attempts (COLLECTED, FAILED or LOST) and their TERMINATING jobs.

    Returns the attempts that were still waiting for it. The VM's row must be locked.
    """
    payload = json.dumps([{n: getattr(o, n) for n in Outcome.__slots__} for o in outcomes])
    found = connection.execute(_FINISH, {"vm": vm_id, "rows": payload}).all()
    done = {row.id for row in found}
    count_retries(connection, [row.array_id for row in found if row.retried and row.array_id])
    insert_outputs(connection, [row for row in outputs if row["attempt_id"] in done])
    connection.execute(text("UPDATE vms SET busy_at = now() WHERE id = :vm"), {"vm": vm_id})
    release_idle_leases(connection, vm_id)
    return done


def to_collect(
    connection: Connection,
    *,
    vm_id: int | None = None,
    older_than_s: float = 0.0,
    attempt_ids: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Return EXITED attempts with what is needed to fetch their outputs."""
    found = rows(
        connection,
        """SELECT a.id AS attempt_id, a.job_id, a.epoch, a.vm_id, a.reason, a.message, a.exit_code,
                  a.signal, a.pending, j.array_index, j.params, s.outputs
           FROM attempts a JOIN jobs j ON j.id = a.job_id JOIN job_specs s ON s.id = j.spec_id
           WHERE a.state = 'EXITED' AND (CAST(:vm AS bigint) IS NULL OR a.vm_id = :vm)
             AND (CAST(:ids AS bigint[]) IS NULL OR a.id = ANY(:ids))
             AND a.ended_at <= now() - make_interval(secs => :age) ORDER BY a.id""",
        vm=vm_id,
        age=older_than_s,
        ids=list(attempt_ids) if attempt_ids is not None else None,
    )
    return [dict(row) for row in found]


def is_interrupted(connection: Connection, vm_id: int) -> bool:
    """Return whether the VM's provider has announced to take it away."""
    found = connection.scalar(
        text("SELECT interruption_at IS NOT NULL FROM vms WHERE id = :vm"), {"vm": vm_id}
    )
    return bool(found)


def live_attempts(connection: Connection, vm_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return (vm_id, attempt_id, job_id, state) of all live attempts on these VMs."""
    found = rows(
        connection,
        """SELECT vm_id, id AS attempt_id, job_id, state FROM attempts
           WHERE vm_id = ANY(:vms) AND state IN ('PLACED', 'STARTED', 'EXITED') ORDER BY vm_id, id""",
        vms=list(vm_ids),
    )
    return [dict(row) for row in found]
