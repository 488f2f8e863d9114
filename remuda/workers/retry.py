"""Whether a job whose attempt did not end well runs again: one pure function of policy and facts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from remuda.retries import RetryPolicy

# No attempt could change these.
FINAL = frozenset({"OK", "CANCELLED", "DEPENDENCY", "QUEUE_TIMEOUT"})
LOST = "LOST"
# Losses before the job was heard to have begun that count as one after: a job that takes its machine
# with it at once is never heard to begin, and whoever only waited there loses nothing by it so often.
UNHEARD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How an attempt ended; `reason` is a name of models.states.Reason."""

    reason: str
    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The last attempt's end, with all that counts for what comes next.

    `failures`, `losses`: of the job, this one included; `unheard`: losses before it was heard to have
    begun, likewise. `earlier`: its failures before this one, as far as rules need them.
    `array_retries`: retries of all jobs of its array so far. `memory_bytes`: what it had (None: no
    limit), `most_memory_bytes`: what it could have at most. `seed`: makes the jitter; the same one
    gives the same pause.
    """

    last: Failure
    failures: int
    losses: int
    unheard: int = 0
    earlier: Sequence[Failure] = ()
    array_retries: int = 0
    memory_bytes: int | None = None
    most_memory_bytes: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Requeue:
    """The job waits again, for at least `delay_s` seconds; with new `memory_bytes` unless None."""

    delay_s: float
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job is over; `message` says in words why it is not tried again."""

    reason: str
    message: str


def decide(policy: RetryPolicy, outcome: Outcome) -> Requeue | GiveUp:
    """Return what becomes of the job."""
    reason = outcome.last.reason
    if reason in FINAL:
        return GiveUp(reason, f"{reason} is final")
    if reason == LOST:
        losses = outcome.losses + outcome.unheard // UNHEARD
        if losses < policy.max_losses:
            # The first loss is made good at once.
            return Requeue(_delay_s(policy, policy.delay_s, losses - 1, outcome))
        told = [f"{_times(outcome.losses)} with the VMs it ran on"] if outcome.losses else []
        if outcome.unheard >= UNHEARD:
            told.append(f"{_times(outcome.unheard)} with VMs it had been sent to")
        return GiveUp(LOST, f"lost {', '.join(told)}, and given up")
    return _after_failure(policy, outcome)


def _after_failure(policy: RetryPolicy, outcome: Outcome) -> Requeue | GiveUp:
    last, retried = outcome.last, outcome.failures - 1
    rule = policy.rule_for(last.reason, last.exit_code, last.signal)
    delay_s = policy.delay_s
    if rule is not None:
        delay_s = delay_s if rule.delay_s is None else rule.delay_s
        before = sum(rule.matches(f.reason, f.exit_code, f.signal) for f in outcome.earlier)
        if rule.max_retries is not None and before >= rule.max_retries:
            most = f"{_times(rule.max_retries + 1)} in this way"
            return GiveUp(last.reason, f"failed {_times(before + 1)}, of at most {most}")
    if retried >= policy.max_retries:
        most = _times(policy.max_retries + 1)
        return GiveUp(last.reason, f"failed {_times(outcome.failures)}, of at most {most}")
    if policy.max_total_retries is not None and outcome.array_retries >= policy.max_total_retries:
        total = policy.max_total_retries
        return GiveUp(last.reason, f"the {total} retries of all jobs of its array are used up")
    memory_bytes = None
    if last.reason == "OUT_OF_MEMORY" and outcome.memory_bytes is not None:
        memory_bytes = _more_memory(policy, outcome)
        if memory_bytes <= outcome.memory_bytes and policy.memory_factor > 1:
            had = f"{outcome.memory_bytes} bytes"
            return GiveUp(last.reason, f"{had} of memory were too little, and more cannot be had")
    return Requeue(_delay_s(policy, delay_s, outcome.failures, outcome), memory_bytes)


def _more_memory(policy: RetryPolicy, outcome: Outcome) -> int:
    had = outcome.memory_bytes or 0
    limits = [policy.max_memory_bytes, outcome.most_memory_bytes]
    return min([int(had * policy.memory_factor), *(most for most in limits if most is not None)])


def _delay_s(policy: RetryPolicy, first_s: float, count: int, outcome: Outcome) -> float:
    if count <= 0:
        return 0.0
    try:
        grown_s = first_s * policy.factor ** (count - 1)
    except OverflowError:
        grown_s = policy.max_delay_s
    spread = hashlib.sha256(f"{outcome.seed}:{count}".encode()).digest()
    part = int.from_bytes(spread[:4], "big") / 2**32
    return float(min(policy.max_delay_s, grown_s) * (1 + policy.jitter * part))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
