"""Jobs that were to start by a certain time: `max_queue_s`, counted from when they could start.

That is from their submission or, for a job with dependencies, from the end of the last of those it
waited for. A job that has started once has met its deadline, whatever becomes of that attempt.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

# Of `jobs j`: what may be overdue, as far as the job's own row tells.
MAYBE_OVERDUE = """
    coalesce(j.submitted_at + make_interval(secs => j.max_queue_s) < now(), false)"""

_OVERDUE = f"""(
    j.max_queue_s IS NOT NULL AND j.unmet = 0 AND {MAYBE_OVERDUE}
    AND NOT EXISTS (SELECT FROM attempts t WHERE t.job_id = j.id AND t.started_at IS NOT NULL)
    AND greatest(
      j.submitted_at,
      (SELECT max(p.ended_at) FROM dependencies d JOIN jobs p ON p.id = d.parent_id
       WHERE d.job_id = j.id),
      (SELECT max(p.ended_at) FROM dependencies d JOIN jobs p ON p.array_id = d.parent_array_id
       WHERE d.job_id = j.id)
    ) + make_interval(secs => j.max_queue_s) < now())"""

# The state is asked for once alone, as in `remuda.models.cancel`.
_END = text(f"""
    UPDATE jobs SET state = 'TERMINATED', reason = 'QUEUE_TIMEOUT', ended_at = now(),
      message = 'it did not start within ' || max_queue_s || ' s (max_queue_s)'
    WHERE id IN (
      SELECT j.id FROM jobs j WHERE j.state = 'NEW' AND {_OVERDUE}
        AND (CAST(:ids AS bigint[]) IS NULL OR j.id = ANY(:ids))
      ORDER BY j.id LIMIT 10000 FOR NO KEY UPDATE OF j SKIP LOCKED)
    RETURNING id
""")


def end_overdue(connection: Connection, job_ids: Sequence[int] | None = None) -> list[int]:
    """End the waiting jobs (of these ids) whose deadline for starting is over; return their ids.

    Those a dispatcher has in hand are left to it.
    """
    ids = None if job_ids is None else list(job_ids)
    return list(connection.scalars(_END, {"ids": ids}))
