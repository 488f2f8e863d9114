"""What follows from a budget: a pure function of what was spent."""

from __future__ import annotations

from typing import Literal

__all__ = ["Level", "level_of", "stop_reason"]

Level = Literal["ok", "warn", "stop"]


def level_of(spent: float, *, warn: float | None, stop: float | None) -> Level:
    """Return `stop` from that amount on, else `warn` from that one on."""
    if stop is not None and spent >= stop:
        return "stop"
    return "warn" if warn is not None and spent >= warn else "ok"


def stop_reason(whose: str, *, spent: float, stop: float, period: str) -> str:
    """Return why nothing is placed or launched, in words."""
    when = "in all" if period == "total" else f"this {period}"
    return f"the budget of {whose} is used up: {spent:.2f} of {stop:.2f} spent {when}"
