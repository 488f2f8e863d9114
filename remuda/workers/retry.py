"""Whether a job whose attempt did not end well runs again: data and one pure function.

A job has two counts. Its own failures (a wrong exit code, a signal, a limit, a missing output)
are tried again as often as its user asked. Losses (the VM or its runner died under it) are not
its fault and are tried again by default, but not for ever: a job may itself kill its VMs.
"""

from __future__ import annotations

from dataclasses import dataclass

from remuda.errors import BadInput

FINAL = frozenset({"OK", "CANCELLED", "DEPENDENCY"})  # no attempt could change these
LOST = "LOST"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and how long to wait before: `delay_s`, doubled each time up to `max_delay_s`.

    `max_attempts`: own failures until the job is given up (1: no retry); `max_losses`: the same
    for losses. The first loss is made good at once.
    """

    max_attempts: int = 1
    max_losses: int = 5
    delay_s: float = 1.0
    max_delay_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("max_attempts", "max_losses"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise BadInput(f"{name} must be a whole number of at least 1, not {value!r}")
        for name in ("delay_s", "max_delay_s"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= 1e9:
                raise BadInput(f"{name} must be a number of seconds from 0 to 1e9, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the last attempt ended (a name of models.states.Reason), and both counts with it."""

    reason: str
    attempts: int
    losses: int


@dataclass(frozen=True, slots=True)
class Requeue:
    """The job waits again, for at least `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job is over; `message` says in words why it is not tried again."""

    reason: str
    message: str


def decide(policy: RetryPolicy, outcome: Outcome) -> Requeue | GiveUp:
    """Return what becomes of the job."""
    if outcome.reason in FINAL:
        return GiveUp(outcome.reason, f"{outcome.reason} is final")
    if outcome.reason == LOST:
        if outcome.losses < policy.max_losses:
            return Requeue(_delay_s(policy, outcome.losses - 1))
        return GiveUp(LOST, f"lost {_times(outcome.losses)} with the VMs it ran on, and given up")
    if outcome.attempts < policy.max_attempts:
        return Requeue(_delay_s(policy, outcome.attempts))
    return GiveUp(
        outcome.reason,
        f"failed {_times(outcome.attempts)}, of at most {_times(policy.max_attempts)}",
    )


def _delay_s(policy: RetryPolicy, failures: int) -> float:
    if failures <= 0:
        return 0.0
    doublings = min(failures - 1, 64)  # far past any limit, and still a float
    return float(min(policy.max_delay_s, policy.delay_s * 2**doublings))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
