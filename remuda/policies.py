"""How large a pool is to be, and when: an ordered list of policies, of which the first active rules.

A policy is `fixed`, so many slots, or `queue`, as many as its jobs need within bounds. It is active
always, or in weekly periods by the clocks of its time zone. Where none is active the pool's own size
rules: an elastic pool is one policy that is always active.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

from remuda.checks import shown
from remuda.errors import BadInput

__all__ = ["DAY_MIN", "ElasticSettings", "Period", "Policy", "next_change", "policy_at", "zone_of"]

DAY_MIN = 24 * 60  # minutes
_AHEAD_DAYS = 8  # a week, and what a change of clocks may add to it


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticSettings:
    """The six parameters of a size that follows the demand; raises BadInput naming the wrong one.

    Slots are whole numbers, `resize_factor` a share of the maximum in (0, 1], times seconds.
    """

    minimum_total_slots: int = 0
    maximum_total_slots: int
    minimum_idle_slots: int = 0
    minimum_idle_time_seconds: float = 0.0
    resize_factor: float = 1.0
    resize_period: float = 90.0

    def __post_init__(self) -> None:
        for name in ("minimum_total_slots", "maximum_total_slots", "minimum_idle_slots"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise BadInput(f"{name} must be a whole number from 0 up, not {shown(value)}")
        for name in ("minimum_idle_time_seconds", "resize_factor", "resize_period"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not (0 <= value <= 1e9):
                raise BadInput(f"{name} must be a number from 0 to 1e9, not {shown(value)}")
        for name in ("minimum_total_slots", "minimum_idle_slots"):
            if getattr(self, name) > self.maximum_total_slots:
                raise BadInput(
                    f"{name} ({getattr(self, name)}) is more than"
                    f" maximum_total_slots ({self.maximum_total_slots})"
                )
        if not 0 < self.resize_factor <= 1:
            raise BadInput(f"resize_factor must be above 0 and at most 1, not {self.resize_factor}")
        if self.resize_period < 1:
            raise BadInput(f"resize_period must be at least 1 second, not {self.resize_period}")


@dataclass(frozen=True, slots=True)
class Period:
    """On these days of the week (0: Monday), from one minute of the day up to, not with, another.

    The end is at most 24:00: what goes past midnight is two periods.
    """

    days: tuple[int, ...]
    from_min: int
    to_min: int


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule for a pool's size. `periods` none: always active. `size`: a fixed one's has equal bounds."""

    name: str
    kind: Literal["fixed", "queue"]
    size: ElasticSettings
    periods: tuple[Period, ...] = ()
    time_zone: str = "UTC"

    def is_active(self, now: datetime) -> bool:
        """Return whether it is active at a time (with a time zone), by the clocks of its own zone."""
        if not self.periods:
            return True
        local = now.astimezone(zone_of(self.time_zone))
        minute = local.hour * 60 + local.minute
        return any(
            local.weekday() in period.days and period.from_min <= minute < period.to_min
            for period in self.periods
        )


def policy_at(policies: Sequence[Policy], now: datetime) -> Policy | None:
    """Return the policy that rules at a time: the first that is active; None if none is."""
    return next((policy for policy in policies if policy.is_active(now)), None)


def next_change(policies: Sequence[Policy], now: datetime) -> tuple[datetime, Policy | None] | None:
    """Return when another policy will rule, and which (None: none of them); None: that never comes."""
    present = policy_at(policies, now)
    edges = {
        edge for policy in policies if policy.periods for edge in _edges(policy, now) if edge > now
    }
    for edge in sorted(edges):
        ruling = policy_at(policies, edge)
        if ruling is not present:
            return edge, ruling
    return None


def _edges(policy: Policy, now: datetime) -> Iterator[datetime]:
    """Yield when the policy may become active or cease to be, over somewhat more than a week."""
    zone = zone_of(policy.time_zone)
    first = now.astimezone(zone).date()
    for ahead in range(-1, _AHEAD_DAYS + 1):
        day = first + timedelta(days=ahead)
        begin, end = _midnight(day, zone), _midnight(day + timedelta(days=1), zone)
        if begin.astimezone(zone).utcoffset() != end.astimezone(zone).utcoffset():
            yield _clocks_change(begin, end, zone)
        for period in policy.periods:
            if day.weekday() in period.days:
                for minute in (period.from_min, period.to_min):
                    # Twice where the clocks show that time twice.
                    yield from {_instant(day, minute, zone, fold) for fold in (0, 1)}


def _instant(day: date, minute: int, zone: ZoneInfo, fold: int) -> datetime:
    if minute == DAY_MIN:
        day, minute = day + timedelta(days=1), 0
    local = datetime.combine(day, time(minute // 60, minute % 60, fold=fold), zone)
    return local.astimezone(UTC)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(0), zone).astimezone(UTC)


def _clocks_change(low: datetime, high: datetime, zone: ZoneInfo) -> datetime:
    """Return the first second with the offset from UTC that `high` has."""
    after = high.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = (low + (high - low) / 2).replace(microsecond=0)
        if middle <= low:
            break
        low, high = (
            (low, middle) if middle.astimezone(zone).utcoffset() == after else (middle, high)
        )
    return high


@lru_cache(maxsize=64)
def zone_of(name: str) -> ZoneInfo:
    """Return the time zone of that name; raises BadInput if there is none."""
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # not there, a folder, no name at all
        raise BadInput(
            f"there is no time zone {shown(name)}",
            hint="such as Europe/Paris, America/New_York or UTC",
        ) from None
