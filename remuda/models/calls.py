"""Calls: questions to the VMs that jobs run on, and their answers, between clients and workers.

A client has no way to a VM: it inserts a row, which wakes the workers; one of them claims it, asks
the VM's runner, writes the answer, and that wakes the client. A call nobody waits for expires.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from remuda.errors import OutputNotAvailable, Refused, RemudaError
from remuda.models.database import rows

ANSWER_CHANNEL = "remuda_answer"  # to waiting clients: ids of answered calls, "1,2,3"
STALE_S = 8.0  # a claim without an answer for so long is a dead worker's

_STANDING = """
    SELECT j.id, j.state, j.held, j.epoch, j.walltime_s, a.id AS attempt_id,
           a.state AS attempt_state, a.vm_id
    FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id AND a.epoch = j.epoch
    WHERE j.id = ANY(:ids) ORDER BY j.id
"""

# The worker that watches the VM has a channel to it; the others wait for it a moment.
_CLAIM = """
    WITH open AS (
      SELECT c.id, c.claimed_at IS NOT NULL AS again, j.state, a.id AS attempt_id,
             a.state AS attempt_state, a.vm_id
      FROM calls c JOIN jobs j ON j.id = c.job_id
      LEFT JOIN attempts a ON a.job_id = j.id AND a.epoch = j.epoch
      LEFT JOIN vms v ON v.id = a.vm_id
      WHERE c.answered_at IS NULL AND c.expires_at > now()
        AND (c.claimed_at IS NULL OR c.claimed_at < now() - make_interval(secs => :stale))
        AND (v.watcher IS NULL OR v.watcher = :worker OR v.watch_expires_at < now()
             OR c.created_at < now() - interval '0.5 seconds')
      ORDER BY c.id LIMIT :most
      -- Each call is asked by one worker; what another is claiming is not for us.
      FOR UPDATE OF c SKIP LOCKED
    )
    UPDATE calls SET claimed_at = now() FROM open WHERE calls.id = open.id
    RETURNING calls.id, calls.job_id, calls.verb, calls.arguments, open.again, open.state,
              open.attempt_id, open.attempt_state, open.vm_id
"""

_ANSWER = text("""
    UPDATE calls SET answered_at = now(), answer = r.answer, error = r.error
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id bigint, answer jsonb, error jsonb)
    WHERE calls.id = r.id AND calls.answered_at IS NULL
""")

_SUSPENDED = text("""
    WITH r AS (
      SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:flags AS boolean[])) AS r(id, suspended)
    ), locked AS (
      SELECT j.id, r.suspended FROM r JOIN attempts a ON a.id = r.id AND a.vm_id = :vm
      JOIN jobs j ON j.id = a.job_id AND j.epoch = a.epoch
      WHERE a.state IN ('PLACED', 'STARTED')
      ORDER BY j.id FOR NO KEY UPDATE OF j
    )
    UPDATE jobs SET state = CASE WHEN l.suspended THEN 'STOPPED' ELSE 'RUNNING' END
    FROM locked l WHERE jobs.id = l.id AND CASE WHEN l.suspended
      THEN jobs.state IN ('SUBMITTED', 'RUNNING', 'UNKNOWN') ELSE jobs.state = 'STOPPED' END
    RETURNING jobs.id
""")

# The state is asked for once alone, as in `remuda.models.cancel`.
_HOLD = text("""
    WITH locked AS (
      SELECT id FROM jobs WHERE id = ANY(:ids) AND state = 'NEW' ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE jobs SET held = :held WHERE id IN (SELECT id FROM locked) RETURNING id
""")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call: an answer, or an error."""

    call_id: int
    answer: Mapping[str, Any] | None = None
    error: RemudaError | None = None


def standing(connection: Connection, job_ids: Sequence[int]) -> Sequence[Mapping[str, Any]]:
    """Return where the jobs are: id, state, held, epoch, walltime_s, attempt_id, attempt_state."""
    return rows(connection, _STANDING, ids=list(job_ids))


def refusal(verb: str, job_id: int, state: str, attempt_state: str | None) -> RemudaError | None:
    """Return why a job in this state cannot be called upon; None if it can."""
    if verb in ("peek", "files"):
        if attempt_state in ("STARTED", "EXITED"):
            return None
        hint = "it has files once it runs" if state != "TERMINATED" else ""
        return OutputNotAvailable(f"job {job_id} is {state}, on no machine", hint=hint)
    if attempt_state == "STARTED" or (attempt_state == "PLACED" and verb != "signal"):
        return None
    if state in ("TERMINATING", "TERMINATED"):
        return Refused(f"job {job_id} is {state}: its command has ended")
    return Refused(f"job {job_id} is {state}: its command has not started", hint="wait until it is")


def ask(
    connection: Connection,
    verb: str,
    job_ids: Sequence[int],
    arguments: Mapping[str, Any],
    *,
    ttl_s: float,
) -> dict[int, int]:
    """Put the question to the VMs of the jobs; return the job of each call by the call's id."""
    made = connection.execute(
        text(
            """INSERT INTO calls (job_id, verb, arguments, expires_at)
               SELECT id, :verb, CAST(:arguments AS jsonb), now() + make_interval(secs => :ttl)
               FROM unnest(CAST(:ids AS bigint[])) AS id RETURNING id, job_id"""
        ),
        {
            "verb": verb,
            "arguments": json.dumps(dict(arguments)),
            "ttl": ttl_s,
            "ids": list(job_ids),
        },
    )
    return {row.id: row.job_id for row in made}


def wake_workers(connection: Connection) -> None:
    """Have the workers look for calls, once more."""
    connection.execute(text("SELECT pg_notify('remuda_wake', 'call')"))


def answers(connection: Connection, call_ids: Sequence[int]) -> Sequence[Mapping[str, Any]]:
    """Return (id, answer, error) of those of the calls that are answered."""
    return rows(
        connection,
        """SELECT id, answer, error FROM calls
           WHERE id = ANY(:ids) AND answered_at IS NOT NULL ORDER BY id""",
        ids=list(call_ids),
    )


def forget(connection: Connection, call_ids: Sequence[int]) -> set[int]:
    """Remove calls nobody waits for any more; return those that a worker had taken up."""
    found = rows(
        connection,
        "DELETE FROM calls WHERE id = ANY(:ids) RETURNING id, claimed_at",
        ids=list(call_ids),
    )
    return {row["id"] for row in found if row["claimed_at"] is not None}


def claim(connection: Connection, worker: str, *, most: int = 64) -> list[dict[str, Any]]:
    """Take up calls for `worker`, oldest first; `again`: a worker before died over it."""
    found = rows(connection, _CLAIM, worker=worker, stale=STALE_S, most=most)
    return sorted((dict(row) for row in found), key=lambda row: row["id"])


def release(connection: Connection, call_ids: Sequence[int]) -> None:
    """Give back calls that were claimed, but not asked."""
    connection.execute(
        text("UPDATE calls SET claimed_at = NULL WHERE id = ANY(:ids) AND answered_at IS NULL"),
        {"ids": list(call_ids)},
    )


def answer(connection: Connection, answered: Sequence[Answer]) -> None:
    """Write the answers, which wakes who waits for them; a second answer changes nothing."""
    payload = [
        {
            "id": each.call_id,
            "answer": None if each.answer is None else dict(each.answer),
            "error": None if each.error is None else as_row(each.error),
        }
        for each in answered
    ]
    connection.execute(_ANSWER, {"rows": json.dumps(payload)})


def as_row(error: RemudaError) -> dict[str, str]:
    """Return an error as the database keeps it."""
    message = error.message.replace("\0", "").encode(errors="replace").decode()
    return {"kind": type(error).__name__, "message": message[:4000], "hint": error.hint}


def record_suspended(
    connection: Connection, vm_id: int, suspended: Mapping[int, bool]
) -> list[int]:
    """Record which live attempts of the VM are suspended now and which run; return the jobs moved."""
    values = {"vm": vm_id, "ids": list(suspended), "flags": list(suspended.values())}
    return list(connection.scalars(_SUSPENDED, values)) if suspended else []


def stopped_on(connection: Connection, vm_id: int) -> dict[int, bool]:
    """Return whether the job of each started attempt of the VM is recorded as suspended."""
    found = rows(
        connection,
        """SELECT a.id, j.state = 'STOPPED' AS stopped FROM attempts a
           JOIN jobs j ON j.id = a.job_id AND j.epoch = a.epoch
           WHERE a.vm_id = :vm AND a.state = 'STARTED'""",
        vm=vm_id,
    )
    return {row["id"]: row["stopped"] for row in found}


def hold(connection: Connection, job_ids: Sequence[int]) -> set[int]:
    """Keep waiting jobs from being placed; return which of them were waiting."""
    return set(connection.scalars(_HOLD, {"ids": list(job_ids), "held": True}))


def let_go(connection: Connection, job_ids: Sequence[int]) -> set[int]:
    """Have waiting jobs placed again; return which of them were waiting."""
    found = set(connection.scalars(_HOLD, {"ids": list(job_ids), "held": False}))
    if found:
        connection.execute(text("SELECT pg_notify('remuda_wake', 'dispatch')"))
    return found


def set_walltime(
    connection: Connection, job_id: int, walltime_s: float, *, attempt_id: int | None = None
) -> bool:
    """Record the job's walltime, if it waits, or runs as this attempt; False if not."""
    found = connection.execute(
        text(
            """UPDATE jobs SET walltime_s = :wall WHERE id = :id AND CASE
                 WHEN CAST(:attempt AS bigint) IS NULL THEN state = 'NEW'
                 ELSE state <> 'TERMINATED' AND epoch = (
                   SELECT epoch FROM attempts WHERE id = :attempt AND job_id = :id) END"""
        ),
        {"id": job_id, "wall": walltime_s, "attempt": attempt_id},
    )
    return bool(found.rowcount)
