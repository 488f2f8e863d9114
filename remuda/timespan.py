"""Spans of time as they are written `d.hh:mm:ss` or `hh:mm:ss`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from remuda.checks import shown
from remuda.errors import BadInput

_SPAN = re.compile(r"(?:(\d{1,9})\.)?([01]\d|2[0-3]):([0-5]\d):([0-5]\d)", re.ASCII)


def span_of(what: str, value: Any, *, most_s: float) -> float | None:
    """Return a span in seconds; None for none: "", None or no time at all.

    It is given as text, a timedelta, or a number of seconds. Raises BadInput naming `what` for
    anything else, for less than nothing and for more than `most_s`.
    """
    seconds = -1.0
    if value is None or value == "":
        return None
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value if 0 <= value <= most_s else -1.0
    elif isinstance(value, str):
        found = _SPAN.fullmatch(value)
        if found is not None:
            days, hours, minutes, rest = (int(part or 0) for part in found.groups())
            seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if not 0 <= seconds <= most_s:
        longest = timedelta(seconds=most_s).days
        raise BadInput(
            f"{what} must be a span of time, at most {longest} days, not {shown(value)}",
            hint="as d.hh:mm:ss or hh:mm:ss, or a timedelta",
        )
    return float(seconds) or None


def span_text(seconds: float | None) -> str:
    """Return a span as `d.hh:mm:ss`, without the days if it has none; "" for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    text = f"{whole // 3600 % 24:02}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 86400}.{text}" if whole >= 86400 else text
