"""The states of everything and the edges between them.

These tables are the only source: the database's `transitions` table is filled from them and its
triggers refuse any other edge, whatever code, or hand, issues the UPDATE. Diagrams: docs/states.md.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is on its way; the comment of each member lists its outgoing edges."""

    NEW = "NEW"  # → SUBMITTED (placed), TERMINATED (cancelled, or can never run)
    SUBMITTED = "SUBMITTED"  # → RUNNING, STOPPED, UNKNOWN, NEW (lost), TERMINATING, TERMINATED
    RUNNING = "RUNNING"  # → STOPPED, UNKNOWN, NEW (lost or retried), TERMINATING, TERMINATED
    STOPPED = "STOPPED"  # → RUNNING, UNKNOWN, NEW, TERMINATING, TERMINATED
    UNKNOWN = "UNKNOWN"  # → SUBMITTED, RUNNING, STOPPED, NEW, TERMINATING, TERMINATED
    TERMINATING = "TERMINATING"  # command ended, results on their way → NEW (retry), TERMINATED
    TERMINATED = "TERMINATED"  # final


class AttemptState(StrEnum):
    """Where one try of a job is."""

    PLACED = "PLACED"  # → STARTED, LOST, CANCELLED (also: recalled), FAILED (never started)
    STARTED = "STARTED"  # → EXITED, LOST, CANCELLED, FAILED
    EXITED = "EXITED"  # outputs still on the VM → COLLECTED, LOST (with its VM), FAILED (staging)
    COLLECTED = "COLLECTED"  # final
    LOST = "LOST"  # final
    CANCELLED = "CANCELLED"  # final
    FAILED = "FAILED"  # final


class VmState(StrEnum):
    """Where a VM is in its life."""

    NEW = "NEW"  # intent committed, provider not asked yet → SUBMITTED, STOPPING, ERROR
    SUBMITTED = "SUBMITTED"  # → WAIT_SSH_CONTEXT, RUNNING, STOPPING, STALLED, ERROR
    WAIT_SSH_CONTEXT = "WAIT_SSH_CONTEXT"  # → CONTEXTUALIZING, STOPPING, STALLED, ERROR
    CONTEXTUALIZING = "CONTEXTUALIZING"  # → RUNNING, STOPPING, STALLED, ERROR
    RUNNING = "RUNNING"  # → STOPPING, STALLED, ERROR, WAIT_SSH_CONTEXT (rebooted)
    STALLED = "STALLED"  # → RUNNING (if not replaced), STOPPING, ERROR, WAIT_SSH_CONTEXT (rebooted)
    STOPPING = "STOPPING"  # → HALTED, STALLED, ERROR
    ERROR = "ERROR"  # → STOPPING; never a dead end
    HALTED = "HALTED"  # final: confirmed gone at the provider


class ImageState(StrEnum):
    """Whether VMs may be launched from an image."""

    NEW = "NEW"  # → VALIDATED (first accepted heartbeat), ERROR
    VALIDATED = "VALIDATED"  # → ERROR
    ERROR = "ERROR"  # → NEW (operator)


class PoolState(StrEnum):
    """What a pool is doing; all but UNSUBMITTED, CLOSED and PENDING_DELETE follow from its VMs."""

    UNSUBMITTED = "UNSUBMITTED"  # → SUBMITTED, CLOSED, PENDING_DELETE
    SUBMITTED = "SUBMITTED"  # → the four below, CLOSING, FAILURE
    PARTIALLY_DISPATCHED = "PARTIALLY_DISPATCHED"  # like SUBMITTED
    FULLY_DISPATCHED = "FULLY_DISPATCHED"  # like SUBMITTED
    PARTIALLY_EXECUTING = "PARTIALLY_EXECUTING"  # like SUBMITTED
    FULLY_EXECUTING = "FULLY_EXECUTING"  # like SUBMITTED
    CLOSING = "CLOSING"  # → CLOSED
    CLOSED = "CLOSED"  # → PENDING_DELETE
    FAILURE = "FAILURE"  # launches keep failing → SUBMITTED (after the pause), CLOSING
    PENDING_DELETE = "PENDING_DELETE"  # final: found by name no more, kept for its jobs


class Reason(StrEnum):
    """Why an attempt or a job ended; beside `exit_code` and `signal`, never mixed with them."""

    OK = "OK"
    NONZERO = "NONZERO"
    SIGNALLED = "SIGNALLED"
    WALLTIME = "WALLTIME"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    CANCELLED = "CANCELLED"
    LOST = "LOST"
    STAGING = "STAGING"
    SUBMISSION = "SUBMISSION"
    DEPENDENCY = "DEPENDENCY"  # a job it waited for did not end as it should
    QUEUE_TIMEOUT = "QUEUE_TIMEOUT"  # it did not start in the time it was given
    PREEMPTED = "PREEMPTED"  # of attempts only: its place was needed for work that is not Flex


NO_BACKEND = "none"  # of pools whose VMs run no jobs: they are only leased
OPEN_POOL = (
    PoolState.SUBMITTED,
    PoolState.PARTIALLY_DISPATCHED,
    PoolState.FULLY_DISPATCHED,
    PoolState.PARTIALLY_EXECUTING,
    PoolState.FULLY_EXECUTING,
)
LIVE_ATTEMPT = (AttemptState.PLACED, AttemptState.STARTED, AttemptState.EXITED)
LIVE_VM = tuple(state for state in VmState if state is not VmState.HALTED)
ON_MACHINE = (JobState.SUBMITTED, JobState.RUNNING, JobState.STOPPED, JobState.UNKNOWN)

_J, _A, _V, _I, _P = JobState, AttemptState, VmState, ImageState, PoolState

JOB_EDGES: dict[JobState, tuple[JobState, ...]] = {
    _J.NEW: (_J.SUBMITTED, _J.TERMINATED),
    _J.SUBMITTED: (_J.RUNNING, _J.STOPPED, _J.UNKNOWN, _J.NEW, _J.TERMINATING, _J.TERMINATED),
    _J.RUNNING: (_J.STOPPED, _J.UNKNOWN, _J.NEW, _J.TERMINATING, _J.TERMINATED),
    _J.STOPPED: (_J.RUNNING, _J.UNKNOWN, _J.NEW, _J.TERMINATING, _J.TERMINATED),
    _J.UNKNOWN: (_J.SUBMITTED, _J.RUNNING, _J.STOPPED, _J.NEW, _J.TERMINATING, _J.TERMINATED),
    _J.TERMINATING: (_J.NEW, _J.TERMINATED),
    _J.TERMINATED: (),
}
ATTEMPT_EDGES: dict[AttemptState, tuple[AttemptState, ...]] = {
    _A.PLACED: (_A.STARTED, _A.LOST, _A.CANCELLED, _A.FAILED),
    _A.STARTED: (_A.EXITED, _A.LOST, _A.CANCELLED, _A.FAILED),
    _A.EXITED: (_A.COLLECTED, _A.LOST, _A.FAILED),
    _A.COLLECTED: (),
    _A.LOST: (),
    _A.CANCELLED: (),
    _A.FAILED: (),
}
VM_EDGES: dict[VmState, tuple[VmState, ...]] = {
    _V.NEW: (_V.SUBMITTED, _V.STOPPING, _V.ERROR),
    _V.SUBMITTED: (_V.WAIT_SSH_CONTEXT, _V.RUNNING, _V.STOPPING, _V.STALLED, _V.ERROR),
    _V.WAIT_SSH_CONTEXT: (_V.CONTEXTUALIZING, _V.STOPPING, _V.STALLED, _V.ERROR),
    _V.CONTEXTUALIZING: (_V.RUNNING, _V.STOPPING, _V.STALLED, _V.ERROR),
    _V.RUNNING: (_V.STOPPING, _V.STALLED, _V.ERROR, _V.WAIT_SSH_CONTEXT),
    _V.STALLED: (_V.RUNNING, _V.STOPPING, _V.ERROR, _V.WAIT_SSH_CONTEXT),
    _V.STOPPING: (_V.HALTED, _V.STALLED, _V.ERROR),
    _V.ERROR: (_V.STOPPING,),
    _V.HALTED: (),
}
IMAGE_EDGES: dict[ImageState, tuple[ImageState, ...]] = {
    _I.NEW: (_I.VALIDATED, _I.ERROR),
    _I.VALIDATED: (_I.ERROR,),
    _I.ERROR: (_I.NEW,),
}
POOL_EDGES: dict[PoolState, tuple[PoolState, ...]] = {
    _P.UNSUBMITTED: (_P.SUBMITTED, _P.CLOSED, _P.PENDING_DELETE),
    **{
        state: (*(other for other in OPEN_POOL if other is not state), _P.CLOSING, _P.FAILURE)
        for state in OPEN_POOL
    },
    _P.FAILURE: (_P.SUBMITTED, _P.CLOSING),
    _P.CLOSING: (_P.CLOSED,),
    _P.CLOSED: (_P.PENDING_DELETE,),
    _P.PENDING_DELETE: (),
}


def edges() -> list[tuple[str, str, str]]:
    """Return every legal transition as (kind, old state, new state)."""
    tables = {
        "job": JOB_EDGES,
        "attempt": ATTEMPT_EDGES,
        "vm": VM_EDGES,
        "image": IMAGE_EDGES,
        "pool": POOL_EDGES,
    }
    return [
        (kind, str(old), str(new))
        for kind, table in tables.items()
        for old, targets in table.items()  # type: ignore[attr-defined]
        for new in targets
    ]
