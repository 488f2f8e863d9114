"""Record what a VM's runner reports: starts, exits, losses; one transaction a batch.

An entry is recorded once: the VM's row keeps the number of the last one taken, and is locked first.
Everything is guarded by the attempt's state and the job's epoch, so a late answer of a replaced
attempt changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from remuda.models.database import rows


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, and what its job does next.

    Ages are seconds before now. `state` is the attempt's next state; `job_state` TERMINATING
    (outputs to fetch), TERMINATED, or NEW after `delay_s` seconds.
    """

    attempt_id: int
    state: str
    job_state: str
    reason: str
    exit_code: int | None = None
    signal: int | None = None
    message: str | None = None
    started_age_s: float | None = None
    begun: bool = False  # it was started, or may have been, even if nobody was told when
    ended_age_s: float = 0.0
    user_s: float | None = None
    system_s: float | None = None
    max_rss_bytes: int | None = None
    peak_memory_bytes: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    failure: bool = False  # counts against the job's own attempts
    loss: bool = False  # counts as lost with a VM
    delay_s: float = 0.0
    memory_bytes: int | None = None  # for NEW: what the job asks for from now on; None: as before
    displaced: bool = False  # its VM is taken away: its job goes first, and nothing is counted
    pending: dict[str, Any] | None = None  # for EXITED: {"files": {name: size}, "streams": [name]}


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """What the decision about a failed attempt needs."""

    attempt_id: int
    job_id: int
    state: str
    max_attempts: int
    failures: int
    losses: int
    cancelled: bool
    unheard: int = 0  # earlier attempts lost before they were heard to have begun
    exit_code: int | None = None
    signal: int | None = None
    retry: dict[str, Any] | None = None  # the policy of the job, else its pool's
    array_id: int | None = None
    memory_bytes: int | None = None
    most_memory_bytes: int | None = None  # that a VM of its pool has
    preempted_for: str | None = None  # why others take its VM's place


_STARTED = text("""
    WITH r AS (
      SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:ages AS float8[])) AS r(id, age)
    ), a AS (
      UPDATE attempts SET state = 'STARTED', started_at = now() - make_interval(secs => r.age)
      FROM r WHERE attempts.id = r.id AND vm_id = :vm AND state = 'PLACED'
      RETURNING job_id, epoch, started_at
    )
    -- One suspended, or resumed, before its start is recorded only has that added.
    UPDATE jobs SET state = CASE state WHEN 'STOPPED' THEN state ELSE 'RUNNING' END,
                    started_at = a.started_at
    FROM a WHERE jobs.id = a.job_id AND jobs.epoch = a.epoch
      AND state IN ('SUBMITTED', 'UNKNOWN', 'STOPPED', 'RUNNING')
""")

_ENDED = text("""
    WITH r AS (
      SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
        attempt_id bigint, state text, job_state text, reason text, exit_code int, signal int,
        message text, started_age_s float8, ended_age_s float8, user_s float8, system_s float8,
        max_rss_bytes bigint, peak_memory_bytes bigint, io_read_bytes bigint, io_write_bytes bigint,
        failure boolean, loss boolean, delay_s float8,
        memory_bytes bigint, displaced boolean, pending jsonb)
    ), a AS (
      UPDATE attempts t SET pending = r.pending,
        state = r.state, reason = r.reason, exit_code = r.exit_code, signal = r.signal,
        message = r.message, user_s = r.user_s, system_s = r.system_s,
        max_rss_bytes = r.max_rss_bytes, peak_memory_bytes = r.peak_memory_bytes,
        io_read_bytes = r.io_read_bytes, io_write_bytes = r.io_write_bytes,
        wall_s = r.started_age_s - r.ended_age_s,
        -- What has an exit was started, even if the runner could not tell when (exit code 127).
        started_at = coalesce(t.started_at, now() - make_interval(secs => coalesce(r.started_age_s,
          CASE WHEN r.state IN ('EXITED', 'COLLECTED') THEN r.ended_age_s END))),
        ended_at = now() - make_interval(secs => r.ended_age_s)
      FROM r WHERE t.id = r.attempt_id AND t.vm_id = :vm AND t.state IN ('PLACED', 'STARTED')
      RETURNING t.id, t.job_id, t.epoch, t.started_at, t.wall_s, r.job_state, r.exit_code, r.signal,
                r.reason, r.message, r.failure, r.loss, r.delay_s, r.memory_bytes, r.displaced
    ), j AS (
      UPDATE jobs SET
        state = a.job_state,
        -- What was suspended stays so if it is to run again.
        held = jobs.held OR (a.job_state = 'NEW' AND jobs.state = 'STOPPED'),
        started_at = CASE WHEN a.job_state = 'NEW' THEN NULL ELSE a.started_at END,
        ended_at = CASE WHEN a.job_state = 'TERMINATED' THEN now() END,
        exit_code = CASE WHEN a.job_state <> 'NEW' THEN a.exit_code END,
        signal = CASE WHEN a.job_state <> 'NEW' THEN a.signal END,
        reason = CASE WHEN a.job_state = 'TERMINATED' THEN a.reason END,
        message = a.message,
        failures = failures + a.failure::int, losses = losses + a.loss::int,
        memory_bytes = coalesce(a.memory_bytes, jobs.memory_bytes),
        displaced = jobs.displaced OR a.displaced,
        not_before = CASE WHEN a.job_state = 'NEW' AND a.delay_s > 0
                          THEN now() + make_interval(secs => a.delay_s) END
      FROM a WHERE jobs.id = a.job_id AND jobs.epoch = a.epoch
        AND jobs.state IN ('SUBMITTED', 'RUNNING', 'STOPPED', 'UNKNOWN')
      RETURNING a.id, jobs.array_id, jobs.owner_id, a.wall_s, a.exit_code,
                a.job_state = 'NEW' AND a.failure AS retried
    )
    SELECT id, array_id, owner_id, wall_s, exit_code, retried FROM j
""")

_OUTPUTS = text("""
    INSERT INTO attempt_outputs (attempt_id, kind, name, size, data, url, executable, sha256,
                                 cut_from, cut_to, written_bytes)
    SELECT r.attempt_id, r.kind, r.name, r.size, decode(r.data, 'base64'), r.url,
           coalesce(r.executable, false), r.sha256, r.cut_from, r.cut_to, r.written_bytes
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
      AS r(attempt_id bigint, kind text, name text, size bigint, data text, url text,
           executable boolean, sha256 text, cut_from bigint, cut_to bigint, written_bytes bigint)
    JOIN attempts a ON a.id = r.attempt_id
    ON CONFLICT DO NOTHING
""")

# Expected run time: an average that forgets with a weight of one in ten batches.
_LEARN = text("""
    WITH seen AS (
      SELECT u.array_id, u.owner_id, avg(u.wall_s) AS mean
      FROM unnest(CAST(:arrays AS bigint[]), CAST(:owners AS bigint[]), CAST(:walls AS float8[]))
        AS u(array_id, owner_id, wall_s)
      GROUP BY 1, 2
    ), free_arrays AS (  -- what somebody else writes just now learns another time
      SELECT id FROM arrays WHERE id = ANY(:arrays) FOR NO KEY UPDATE SKIP LOCKED
    ), free_owners AS (
      SELECT id FROM owners WHERE id IN (SELECT owner_id FROM seen WHERE array_id IS NULL)
      FOR NO KEY UPDATE SKIP LOCKED
    ), of_arrays AS (
      UPDATE arrays SET mean_wall_s = coalesce(0.7 * mean_wall_s + 0.3 * seen.mean, seen.mean)
      FROM seen JOIN free_arrays f ON f.id = seen.array_id WHERE arrays.id = f.id
    )
    UPDATE owners SET mean_wall_s = coalesce(0.7 * mean_wall_s + 0.3 * seen.mean, seen.mean)
    FROM seen JOIN free_owners f ON f.id = seen.owner_id
    WHERE seen.array_id IS NULL AND owners.id = f.id
""")

_RETRIED = text("""
    UPDATE arrays SET retried = retried + r.count
    FROM (SELECT id, count(*) FROM unnest(CAST(:arrays AS bigint[])) AS id GROUP BY id) AS r
    WHERE arrays.id = r.id
""")

_RELEASE = text("""
    UPDATE leases l SET released_at = now()
    WHERE l.vm_id = :vm AND l.for_jobs AND l.released_at IS NULL AND NOT EXISTS (
      SELECT FROM attempts a WHERE a.vm_id = :vm AND a.lease_id = l.id
        AND a.state IN ('PLACED', 'STARTED', 'EXITED'))
""")

_TOUCH = text("""
    UPDATE vms SET journal_n = greatest(journal_n, :n), busy_at = now() WHERE id = :vm
""")


def lock_journal(connection: Connection, vm_id: int) -> int | None:
    """Lock the VM's row; return the number of its last recorded entry, None if it is halted."""
    found = connection.scalar(
        text("SELECT journal_n FROM vms WHERE id = :vm AND state <> 'HALTED' FOR NO KEY UPDATE"),
        {"vm": vm_id},
    )
    return None if found is None else int(found)


def lock_jobs(connection: Connection, attempt_ids: Sequence[int]) -> None:
    """Lock the rows of these attempts' jobs in order, as all do that change more than one."""
    if len(attempt_ids) > 1:
        statement = text("""
            SELECT FROM attempts a JOIN jobs j ON j.id = a.job_id
            WHERE a.id = ANY(:ids) ORDER BY j.id FOR NO KEY UPDATE OF j""")
        connection.execute(statement, {"ids": list(attempt_ids)})


def facts(connection: Connection, attempt_ids: Sequence[int]) -> dict[int, AttemptFacts]:
    """Return what is known of these attempts' jobs, their rows locked in order."""
    found = rows(
        connection,
        """SELECT a.id AS attempt_id, a.job_id, a.state, j.max_attempts, j.failures, j.losses,
                  -- What is counted among the losses was heard of, even if not when it began.
                  (SELECT least(count(*) FILTER (WHERE b.started_at IS NULL), count(*) - j.losses)
                   FROM attempts b WHERE b.job_id = a.job_id AND b.epoch < a.epoch
                     AND b.reason = 'LOST')::int AS unheard,
                  j.cancel_requested_at IS NOT NULL AS cancelled, a.exit_code, a.signal,
                  coalesce(j.retry, CASE WHEN j.max_attempts = 1 THEN p.retry END) AS retry,
                  j.array_id, j.memory_bytes, p.memory_bytes_per_vm AS most_memory_bytes,
                  v.preempted_for
           FROM attempts a JOIN jobs j ON j.id = a.job_id AND j.epoch = a.epoch
           JOIN pools p ON p.id = j.pool_id JOIN vms v ON v.id = a.vm_id
           WHERE a.id = ANY(:ids) ORDER BY j.id FOR NO KEY UPDATE OF j""",
        ids=list(attempt_ids),
    )
    return {row["attempt_id"]: AttemptFacts(**row) for row in found}


def earlier_failures(
    connection: Connection, attempt_ids: Sequence[int]
) -> dict[int, list[Mapping[str, Any]]]:
    """Return (reason, exit_code, signal) of the failed attempts before these, of the same jobs."""
    found = rows(
        connection,
        """SELECT a.id, b.reason, b.exit_code, b.signal FROM attempts a
           JOIN attempts b ON b.job_id = a.job_id AND b.epoch < a.epoch
           WHERE a.id = ANY(:ids) AND b.reason NOT IN ('OK', 'LOST', 'CANCELLED', 'PREEMPTED')
           ORDER BY a.id, b.epoch""",
        ids=list(attempt_ids),
    )
    earlier: dict[int, list[Mapping[str, Any]]] = {}
    for row in found:
        earlier.setdefault(row["id"], []).append(row)
    return earlier


def array_retries(connection: Connection, attempt_ids: Sequence[int]) -> dict[int, int]:
    """Return, by array, how many retries the jobs of these attempts' arrays have had.

    The rows of the arrays are locked in order: once, so before any of them is written.
    """
    found = rows(
        connection,
        """SELECT id, retried FROM arrays WHERE id IN (
             SELECT j.array_id FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE a.id = ANY(:ids))
           ORDER BY id FOR NO KEY UPDATE""",
        ids=list(attempt_ids),
    )
    return {row["id"]: row["retried"] for row in found}


def largest_memory(connection: Connection, attempt_ids: Sequence[int]) -> dict[int, int]:
    """Return, by attempt, the memory in bytes of the largest VM its job's pool has, if known."""
    found = rows(
        connection,
        """SELECT a.id, max(w.memory_bytes) AS most FROM attempts a JOIN vms v ON v.id = a.vm_id
           JOIN vms w ON w.pool_id = v.pool_id AND w.state <> 'HALTED'
           WHERE a.id = ANY(:ids) GROUP BY a.id HAVING max(w.memory_bytes) IS NOT NULL""",
        ids=list(attempt_ids),
    )
    return {row["id"]: int(row["most"]) for row in found}


def count_retries(connection: Connection, array_ids: Sequence[int]) -> None:
    """Count a retry of a job of each of these arrays; an array may be there more than once."""
    if array_ids:
        connection.execute(_RETRIED, {"arrays": sorted(array_ids)})


def states_of(connection: Connection, attempt_ids: Sequence[int]) -> Sequence[Mapping[str, Any]]:
    """Return (attempt_id, job_id, state, reason, job_state) of attempts, for the log."""
    return rows(
        connection,
        """SELECT a.id AS attempt_id, a.job_id, a.state, a.reason, j.state AS job_state
           FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE a.id = ANY(:ids) ORDER BY a.id""",
        ids=list(attempt_ids),
    )


def record_starts(connection: Connection, vm_id: int, ages: Mapping[int, float]) -> None:
    """Record that attempts of the VM started `ages[id]` seconds ago."""
    if ages:
        connection.execute(_STARTED, {"vm": vm_id, "ids": list(ages), "ages": list(ages.values())})


def record_ends(
    connection: Connection,
    vm_id: int,
    outcomes: Sequence[Outcome],
    outputs: Sequence[Mapping[str, Any]] = (),
    *,
    journal_n: int = 0,
) -> set[int]:
    """Record ends and small outputs (base64 `data`), move the journal's mark, free the leases.

    Returns the attempts that were live until now; the others were replaced and changed nothing.
    """
    live: set[int] = set()
    if outcomes:
        payload = json.dumps([_fields(outcome) for outcome in outcomes])
        ended = connection.execute(_ENDED, {"vm": vm_id, "rows": payload}).mappings().all()
        live = {row["id"] for row in ended}
        again = [row["array_id"] for row in ended if row["retried"] and row["array_id"]]
        count_retries(connection, again)
        well = [row for row in ended if row["exit_code"] is not None and row["wall_s"] is not None]
        if well:
            connection.execute(
                _LEARN,
                {
                    "arrays": [row["array_id"] for row in well],
                    "owners": [row["owner_id"] for row in well],
                    "walls": [row["wall_s"] for row in well],
                },
            )
    insert_outputs(connection, [row for row in outputs if row["attempt_id"] in live])
    connection.execute(_TOUCH, {"vm": vm_id, "n": journal_n})
    if outcomes:
        release_idle_leases(connection, vm_id)
    return live


def insert_outputs(connection: Connection, outputs: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows; repeats change nothing.

    (attempt_id, kind, name, size, data in base64 or url; executable and sha256 where known; of a
    shortened stream cut_from, cut_to and written_bytes.)
    """
    if outputs:
        connection.execute(_OUTPUTS, {"rows": json.dumps([dict(row) for row in outputs])})


def release_idle_leases(connection: Connection, vm_id: int) -> None:
    """End the job leases on the VM that no live attempt holds; the VM's row must be locked."""
    connection.execute(_RELEASE, {"vm": vm_id})


def _fields(outcome: Outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in Outcome.__slots__}
