"""What was, over time: one metric by bucket, ready to be printed, plotted or computed with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from remuda.checks import shown, text_of, whole
from remuda.errors import BadInput
from remuda.models.history import METRICS, Metric, Period

MOST_BUCKETS = 100_000
_MOST_BUCKET_S = 366 * 86400
_AIM = 120  # buckets, if none is asked for
_NICE_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 7 * 86400)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class History:
    """A metric over time: `series[key][told][n]` is about the time from `times[n]` for `bucket_s`.

    `told`: avg and max of a level, avg, min and max of samples, sum of counters and counts, p50,
    p90, p99 and count of durations. Keys: the values of `by`; without it one key, "".
    """

    metric: str
    unit: str
    help: str
    by: str | None
    bucket_s: int
    times: list[datetime]
    series: dict[str, dict[str, list[float | None]]]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row for each bucket and key: time, the key under the name of `by`, values."""
        for n, time in enumerate(self.times):
            for key, told in self.series.items():
                named = {self.by: key} if self.by else {}
                yield {"time": time, **named, **{name: told[name][n] for name in told}}


def metric_of(name: Any, by: Any) -> Metric:
    """Return the metric, if it can be divided by `by`; raises BadInput naming what there is."""
    found = METRICS.get(text_of("a metric", name))
    if found is None:
        raise BadInput(f"there is no metric {shown(name)}", hint=f"metrics: {', '.join(METRICS)}")
    if by is not None and text_of("by", by) not in found.by:
        raise BadInput(
            f"{name} cannot be divided by {shown(by)}", hint=f"but by {', '.join(found.by)}"
        )
    return found


def period_of(now: datetime, *, since: Any, until: Any, bucket_s: Any) -> Period:
    """Return the buckets from `since` to `until`: datetimes, or how long ago; raises BadInput."""
    start, end = time_of("since", since, now), time_of("until", until, now)
    if start >= now:
        raise BadInput(f"since is not in the past: {start.isoformat()}")
    if not start < end:
        raise BadInput(f"until, {end.isoformat()}, is not after since, {start.isoformat()}")
    end = min(end, now)
    if bucket_s is None:
        span_s = (end - start).total_seconds()
        width = next((nice for nice in _NICE_S if span_s / nice <= _AIM), _NICE_S[-1])
    else:
        width = whole("bucket_s", bucket_s, least=1, most=_MOST_BUCKET_S)
    first = int((start - _EPOCH).total_seconds()) // width
    last = -int(-(end - _EPOCH).total_seconds() // width)  # the one that ends with or after it
    if last - first > MOST_BUCKETS:
        raise BadInput(
            f"these would be {last - first} buckets, at most {MOST_BUCKETS} are possible",
            hint="make them wider, or the time shorter",
        )
    begin = _EPOCH + timedelta(seconds=first * width)
    stop = min(_EPOCH + timedelta(seconds=last * width), now)
    return Period(begin, stop, width, last - first)


def time_of(what: str, value: Any, now: datetime) -> datetime:
    """Return a datetime, or how long ago it was, as a datetime in UTC; raises BadInput."""
    if isinstance(value, timedelta):
        if value < timedelta(0):
            raise BadInput(f"{what} is in the future: {value}")
        try:
            return now - value
        except OverflowError:
            raise BadInput(f"{what} is too long ago: {value}") from None
    if isinstance(value, datetime) and value.tzinfo is not None:
        found = value.astimezone(UTC)
        if found.year < 1971:
            raise BadInput(f"{what} is too long ago: {found.isoformat()}")
        return found
    raise BadInput(
        f"{what} is a datetime with its time zone, or a timedelta (so long ago), not {shown(value)}"
    )


def times_of(period: Period) -> list[datetime]:
    """Return when each bucket begins."""
    return [period.start + timedelta(seconds=n * period.bucket_s) for n in range(period.count)]
