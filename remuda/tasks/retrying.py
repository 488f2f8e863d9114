"""Whether a job whose attempt did not end well runs again: the facts gathered, the policy applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from remuda.models import exits
from remuda.models.exits import AttemptFacts, Outcome
from remuda.models.states import Reason
from remuda.retries import RetryPolicy, policy_from_row
from remuda.workers import retry


@dataclass(slots=True)
class Known:
    """What is known of an attempt's job; `array_retries` is shared by the jobs of an array."""

    facts: AttemptFacts
    policy: RetryPolicy
    earlier: Sequence[retry.Failure] = ()
    array_retries: list[int] = field(default_factory=lambda: [0])
    most_memory_bytes: int | None = None


def known_of(
    connection: Connection, attempt_ids: Sequence[int], *, among: Sequence[int] = ()
) -> dict[int, Known]:
    """Return what the decision about each of these attempts needs, their jobs' rows locked.

    `among`: all attempts the transaction ends, if they are more than these.
    """
    found = {
        attempt_id: Known(facts, policy_from_row(facts.retry, max_attempts=facts.max_attempts))
        for attempt_id, facts in exits.facts(connection, attempt_ids).items()
    }
    retried = [i for i, known in found.items() if known.policy.max_retries]
    if not retried:
        return found
    ruled = [i for i in retried if found[i].policy.rules]
    for i, rows in (exits.earlier_failures(connection, ruled) if ruled else {}).items():
        found[i].earlier = [
            retry.Failure(reason=r["reason"], exit_code=r["exit_code"], signal=r["signal"])
            for r in rows
        ]
    for i, most in exits.largest_memory(connection, retried).items():
        found[i].most_memory_bytes = most
    _share_budgets(connection, [found[i] for i in retried], among or attempt_ids)
    return found


def _share_budgets(
    connection: Connection, retried: Sequence[Known], attempt_ids: Sequence[int]
) -> None:
    """Lock the arrays whose jobs share a number of retries, so that it is exact.

    With them all others whose counts the transaction will change, or two could wait for each other.
    """
    if all(known.facts.array_id is None for known in retried):
        return
    counts = exits.array_retries(connection, attempt_ids)
    shared = {array_id: [count] for array_id, count in counts.items()}
    for known in retried:
        if known.facts.array_id is not None:
            known.array_retries = shared[known.facts.array_id]


def settle(known: Known | None, outcome: Outcome) -> Outcome:
    """Complete the outcome of an attempt that did not end well: is its job run again?"""
    if known is None:
        return outcome  # replaced meanwhile; recording it will change nothing
    facts = known.facts
    loss = outcome.reason == Reason.LOST
    if facts.cancelled and outcome.reason in (Reason.LOST, Reason.CANCELLED):
        return replace(outcome, job_state="TERMINATED", reason=str(Reason.CANCELLED))
    if facts.preempted_for and outcome.reason in (Reason.LOST, Reason.CANCELLED):
        return replace(
            outcome,
            job_state="NEW",
            reason=str(Reason.PREEMPTED),
            message=facts.preempted_for,
            displaced=True,
        )
    if outcome.reason == Reason.CANCELLED:
        return replace(outcome, job_state="TERMINATED")
    started = facts.state != "PLACED" or outcome.begun or outcome.started_age_s is not None
    counted = replace(outcome, failure=not loss, loss=loss and started and not outcome.displaced)
    decided = retry.decide(known.policy, _for_decision(known, counted))
    if isinstance(decided, retry.GiveUp):
        return replace(counted, job_state="TERMINATED", message=_told(known, counted, decided))
    if facts.cancelled:
        return replace(counted, job_state="TERMINATED")
    if counted.failure:
        known.array_retries[0] += 1
    return replace(
        counted,
        job_state="NEW",
        delay_s=0.0 if outcome.displaced else decided.delay_s,
        memory_bytes=decided.memory_bytes,
    )


def _for_decision(known: Known, counted: Outcome) -> retry.Outcome:
    facts = known.facts
    known_before = counted.exit_code is None and counted.signal is None
    limits = (facts.most_memory_bytes, known.most_memory_bytes)
    return retry.Outcome(
        last=retry.Failure(
            reason=counted.reason,
            exit_code=facts.exit_code if known_before else counted.exit_code,
            signal=facts.signal if known_before else counted.signal,
        ),
        failures=facts.failures + int(counted.failure),
        losses=facts.losses + int(counted.loss),
        unheard=facts.unheard + int(counted.reason == Reason.LOST and not counted.loss),
        earlier=known.earlier,
        array_retries=known.array_retries[0],
        memory_bytes=facts.memory_bytes,
        most_memory_bytes=max((limit for limit in limits if limit is not None), default=None),
        seed=facts.job_id,
    )


def _told(known: Known, counted: Outcome, decided: retry.GiveUp) -> str | None:
    """Say why it was given up, where that is more than that it failed."""
    if counted.loss or counted.reason == Reason.LOST:
        return decided.message
    if not known.policy.max_retries:
        return counted.message
    return f"{counted.message}; {decided.message}" if counted.message else decided.message
