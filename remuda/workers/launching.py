"""The pace of launches, and what becomes of one that went wrong: pure functions of what is known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from remuda.errors import (
    AuthError,
    BadInput,
    CapacityError,
    ImageError,
    InstanceNotFound,
    NoResources,
    PermanentProviderError,
    PreparationFailed,
    ProviderAuthError,
    QuotaExceeded,
)

__all__ = ["Gate", "Launch", "Verdict", "after_error", "held_until", "pause_s"]

_PAUSE_S = 30.0  # of a pool whose provider says that it will not work as things are
_LONGEST_PAUSE_S = 300.0
_FIRST_S = 2.0
_LONGEST_S = 60.0
_BOOT_LONGEST_S = 5.0
_HELD_S = 2.0  # until another start may have ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a pool's next call for a VM has to wait for. `starting`: VMs asked for, not yet running."""

    starting: int
    max_starting: int | None = None
    spawn_interval_s: float = 0.0
    last_spawn_at: datetime | None = None
    paused_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How far a VM's launch is: `failures` of the present step, `asked_at` its provider first.

    `booting`: the provider has made it, its runner does not answer yet.
    """

    failures: int
    retries: int
    asked_at: datetime
    timeout_s: float
    booting: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """`retry`: the same again after `delay_s`; `next_offer`; `pause` the pool, loudly; `fail` the VM.

    `break_image`: `pause`, and no more VMs of this image.
    """

    act: Literal["retry", "next_offer", "pause", "break_image", "fail"]
    delay_s: float = 0.0
    why: str = ""


def held_until(gate: Gate, now: datetime) -> datetime | None:
    """Return when the gate may open, None if it is open."""
    holds = []
    if gate.paused_until is not None and gate.paused_until > now:
        holds.append(gate.paused_until)
    if gate.max_starting is not None and gate.starting >= gate.max_starting:
        holds.append(now + timedelta(seconds=_HELD_S))
    if gate.last_spawn_at is not None:
        due = gate.last_spawn_at + timedelta(seconds=gate.spawn_interval_s)
        if due > now:
            holds.append(due)
    return max(holds, default=None)


def after_error(error: Exception, launch: Launch, now: datetime) -> Verdict:
    """Return what is to be done after `error` stopped a launch.

    Only what the provider says of itself touches the pool; silence costs the VM its budget.
    """
    if isinstance(error, (CapacityError, QuotaExceeded)):
        return Verdict("next_offer")
    if isinstance(error, (ProviderAuthError, PermanentProviderError, BadInput)):
        return Verdict("break_image" if isinstance(error, ImageError) else "pause")
    left_s = launch.timeout_s - (now - launch.asked_at).total_seconds()
    if left_s <= 0:
        return Verdict("fail", why=f"not running {launch.timeout_s:g} s after it was asked for")
    if isinstance(error, (InstanceNotFound, NoResources, PreparationFailed)):
        return Verdict("fail")
    if launch.booting and not isinstance(error, AuthError):
        delay_s = min(_BOOT_LONGEST_S, 0.5 * 2 ** min(launch.failures, 10))
        return Verdict("retry", min(delay_s, left_s))
    if launch.failures >= launch.retries:
        tries = launch.failures + 1
        return Verdict("fail", why=f"tried {tries} times" if tries > 1 else "")
    delay_s = min(_LONGEST_S, _FIRST_S * 2 ** min(launch.failures, 10))
    return Verdict("retry", min(delay_s, left_s))


def pause_s(times: int) -> float:
    """Return how long a pool pauses the `times`-th time that its provider will not work, in seconds."""
    return float(min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** max(0, min(times, 20) - 1)))
