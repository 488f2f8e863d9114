"""When a job that can wait is best started: the hours of the day with what each costs, and the choice.

What the numbers mean is up to whoever writes them: grams of CO2 for a kWh, or a price; less is better.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from remuda.checks import shown, text_of
from remuda.errors import BadInput
from remuda.policies import zone_of

__all__ = ["Hours", "best_delay_s", "hours_of", "read_hours"]

_HOUR_S = 3600.0
_FARTHEST_S = 14 * 86_400.0  # what a week looks like is known then
_LONGEST_S = 7 * 86_400.0
_MARGIN_S = 600.0  # for a VM to start


@dataclass(frozen=True, slots=True)
class Hours:
    """What an hour of work costs, by the clocks of a time zone: 24 numbers, and others at weekends."""

    hours: tuple[float, ...]
    weekend: tuple[float, ...]
    zone: ZoneInfo

    def at(self, moment: datetime) -> float:
        """Return what work costs at that time."""
        local = moment.astimezone(self.zone)
        return (self.weekend if local.weekday() >= 5 else self.hours)[local.hour]

    def mean(self, start: datetime, span_s: float) -> float:
        """Return what work costs on average from a time on."""
        total, at, end = 0.0, start, start + timedelta(seconds=span_s)
        while at < end:
            until = min(end, self.next_hour(at))
            total += self.at(at) * (until - at).total_seconds()
            at = until
        return total / span_s

    def next_hour(self, moment: datetime) -> datetime:
        """Return when the next hour begins there; zones differ by half and quarter hours."""
        local = moment.astimezone(self.zone)
        into = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
        return moment.astimezone(UTC) - into + timedelta(hours=1)


def best_delay_s(hours: Hours, now: datetime, *, within_s: float, run_s: float | None) -> float:
    """Return by how many seconds to put off a job that must start within so many; 0: not at all.

    `run_s`: how long it runs at most (None: an hour is looked at). Of equal times the first. A tenth
    of the time, ten minutes at most, are left for a VM to start.
    """
    latest = now + timedelta(seconds=min(_FARTHEST_S, within_s - min(_MARGIN_S, within_s / 10)))
    span_s = _HOUR_S if run_s is None else min(max(run_s, 1.0), _LONGEST_S)
    best, least = now, hours.mean(now, span_s)
    at = hours.next_hour(now)
    while at <= latest:
        cost = hours.mean(at, span_s)
        if cost < least - 1e-9:
            best, least = at, cost
        at = hours.next_hour(at)
    return (best - now).total_seconds()


def read_hours(path: Path | None) -> Hours:
    """Read a TOML or JSON file; raises BadInput if there is none, or naming what is wrong in it."""
    if path is None:
        raise BadInput(
            "a deferrable job needs hours to choose from",
            hint="REMUDA_HOURS_FILE; see docs/carbon.md",
        )
    try:
        text = path.read_text("utf-8")
        return hours_of(tomllib.loads(text) if path.suffix == ".toml" else json.loads(text))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path} cannot be read: {error}") from None


def hours_of(value: Any) -> Hours:
    """Return the hours that {hours, weekend, time_zone} describes; raises BadInput naming the key."""
    if not isinstance(value, Mapping):
        raise BadInput(f"the hours must be a mapping, not {shown(value)}")
    unknown = sorted(str(key) for key in value if key not in ("hours", "weekend", "time_zone"))
    if unknown:
        raise BadInput(
            f"the hours have no key {', '.join(unknown)[:200]}",
            hint="keys: hours, weekend, time_zone",
        )
    hours = _numbers("hours", value.get("hours"))
    weekend = _numbers("weekend", value["weekend"]) if "weekend" in value else hours
    zone = text_of("time_zone", value.get("time_zone", "UTC"), least=1, most=64)
    return Hours(hours, weekend, zone_of(zone))


def _numbers(what: str, value: Any) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else []
    good = all(
        isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) <= 1e9 for n in numbers
    )
    if len(numbers) != 24 or not good:
        raise BadInput(f"{what} must be a list of 24 numbers, one for each hour of the day")
    return tuple(map(float, numbers))
