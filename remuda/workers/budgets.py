"""What follows from a budget: a pure function of what was spent."""

from __future__ import annotations

from typing import Literal

__all__ = ["Level", "level_of", "stop_reason", "whose"]

Level = Literal["ok", "warn", "stop"]


def level_of(spent: float, *, warn: float | None, stop: float | None) -> Level:
    """Return `stop` from that amount on, else `warn` from that one on."""
    if stop is not None and spent >= stop:
        return "stop"
    return "warn" if warn is not None and spent >= warn else "ok"


def whose(*, pool: str | None, owner: str | None) -> str:
    """Return whose budget it is, in words."""
    if owner is None:
        return f"pool {pool}"
    return f"owner {owner}" if pool is None else f"owner {owner} in pool {pool}"


def stop_reason(of: str, *, spent: float, stop: float, period: str) -> str:
    """Return why nothing is placed or launched, in words."""
    when = {"total": "in all", "day": "today"}.get(period, f"this {period}")
    return f"the budget of {of} is used up: {spent:.2f} of {stop:.2f} spent {when}"
