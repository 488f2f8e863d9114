"""What was, over time: levels, samples, counters, counts and durations by UTC bucket.

Buckets are half-open, [start, start + width), the same for every key and filled with zeros. What is
in a bucket that is not over yet counts up to now. Each metric is one statement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection

from remuda.models import history_sources as sources
from remuda.models.database import rows

Kind = Literal["level", "ratio", "sample", "counter", "count", "duration", "cost"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A quantity: its kind, unit, what it can be divided `by`, and what it tells of each bucket."""

    kind: Kind
    unit: str
    help: str
    by: tuple[str, ...]
    source: str
    column: str = ""

    @property
    def values(self) -> tuple[str, ...]:
        """What is told of each bucket."""
        return _VALUES[self.kind]


_VALUES: dict[Kind, tuple[str, ...]] = {
    "level": ("avg", "max"),
    "ratio": ("avg",),
    "sample": ("avg", "min", "max"),
    "counter": ("sum",),
    "count": ("sum",),
    "duration": ("p50", "p90", "p99", "count"),
    "cost": ("sum",),
}
_VM = ("pool", "image", "provider", "owner")
_JOB = ("pool", "owner")
_RUN = ("pool", "image", "provider", "owner")

METRICS: dict[str, Metric] = {
    "running_vms": Metric("level", "VMs", "VMs that run", _VM, "running_vms"),
    "vms": Metric("level", "VMs", "VMs that are not gone", (*_VM, "state"), "vms"),
    "slots": Metric("level", "slots", "slots of running VMs", _VM, "slots"),
    "busy_slots": Metric("level", "slots", "slots with a job", _RUN, "busy_slots"),
    "leased_slots": Metric("level", "slots", "slots leased without a job", _VM, "leased_slots"),
    "utilisation": Metric("ratio", "busy/slots", "busy slots over slots", _VM, "slots"),
    "waiting_jobs": Metric("level", "jobs", "jobs submitted and not running", _JOB, "waiting_jobs"),
    "running_jobs": Metric("level", "jobs", "jobs that run", _RUN, "running_jobs"),
    "submitted_jobs": Metric("count", "jobs", "jobs submitted", _JOB, "submitted"),
    "started_jobs": Metric("count", "starts", "attempts started", _RUN, "started"),
    "ended_jobs": Metric("count", "jobs", "jobs ended", (*_JOB, "reason"), "ended"),
    "wait_s": Metric("duration", "s", "from submission to the first start", _RUN, "waits"),
    "run_s": Metric("duration", "s", "how long attempts ran", _RUN, "runs"),
    "load": Metric("sample", "load", "load average of a VM", _VM, "samples", "load"),
    "memory_free": Metric("sample", "bytes", "free memory", _VM, "samples", "memory_free_bytes"),
    "disk_free": Metric("sample", "bytes", "free disk space", _VM, "samples", "disk_free_bytes"),
    "transferred_files": Metric(
        "counter", "files", "files moved to and from jobs", _VM, "beats", "transferred_files"
    ),
    "transferred_bytes": Metric(
        "counter", "bytes", "bytes moved to and from jobs", _VM, "beats", "transferred_bytes"
    ),
    "jobs_cost": Metric(
        "cost", "price units", "prices of VMs times the share of jobs in them", _RUN, "job_prices"
    ),
    "cost": Metric("cost", "price units", "prices of VMs times their hours", _VM, "prices"),
}


@dataclass(frozen=True, slots=True)
class Period:
    """`count` buckets of `bucket_s` seconds from `start` on; what is after `end` is not known yet."""

    start: datetime
    end: datetime
    bucket_s: int
    count: int

    def width_s(self, number: int) -> float:
        """Return how many seconds of a bucket are over."""
        over_s = (self.end - self.start).total_seconds() - number * self.bucket_s
        return min(float(self.bucket_s), over_s)


Found = dict[str, dict[str, list[float | None]]]


def values_of(
    connection: Connection,
    name: str,
    period: Period,
    *,
    by: str | None = None,
    pool_ids: Sequence[int] | None = None,
) -> Found:
    """Return the values of each bucket by key and by what is told: `{"a": {"avg": [...]}}`.

    Without `by` the one key is "". Durations and samples of an empty bucket are None, all else 0.
    """
    metric = METRICS[name]
    if metric.kind == "ratio":
        return _ratio(connection, period, by=by, pool_ids=pool_ids)
    parameters = {
        "start": period.start,
        "end": period.end,
        "bucket": float(period.bucket_s),
        "pools": None if pool_ids is None else list(pool_ids),
    }
    source = sources.SOURCES[metric.source](by)
    statement = _STATEMENTS[metric.kind](source, metric.column)
    found: Found = {} if by else {"": _empty(metric, period)}
    for row in rows(connection, statement, **parameters):
        values = found.setdefault(row["key"], _empty(metric, period))
        for told in metric.values:
            values[told][row["bucket"]] = _told(metric, period, row, told)
    return dict(sorted(found.items()))


def _told(metric: Metric, period: Period, row: Mapping[str, Any], told: str) -> float | None:
    if metric.kind == "cost":
        return float(row["area"]) / 3600
    if told == "avg" and metric.kind == "level":
        return float(row["area"]) / period.width_s(row["bucket"])
    value = row[told]
    return None if value is None else float(value)


def _empty(metric: Metric, period: Period) -> dict[str, list[float | None]]:
    nothing = None if metric.kind in ("sample", "duration") else 0.0
    return {told: [0.0 if told == "count" else nothing] * period.count for told in metric.values}


def _ratio(
    connection: Connection, period: Period, *, by: str | None, pool_ids: Sequence[int] | None
) -> Found:
    slots = values_of(connection, "slots", period, by=by, pool_ids=pool_ids)
    busy = values_of(connection, "busy_slots", period, by=by, pool_ids=pool_ids)
    nothing = [0.0] * period.count
    return {
        key: {
            "avg": [
                (b or 0.0) / s if s else None
                for s, b in zip(there["avg"], busy.get(key, {"avg": nothing})["avg"], strict=True)
            ]
        }
        for key, there in slots.items()
    }


def _levels(source: str, _column: str) -> str:
    # A step at each edge, then each step's overlap with the buckets it spans: as many rows as
    # edges and buckets, not as many as things times buckets.
    return f"""
    WITH pieces AS (
      SELECT key, extract(epoch FROM greatest(began, :start) - :start)::float8 AS began,
             extract(epoch FROM least(ended, :end) - :start)::float8 AS ended, weight
      FROM ({source}) AS s
      WHERE began < :end AND (ended IS NULL OR ended > :start)
    ), edges AS (
      SELECT key, at, sum(weight) AS step FROM (
        SELECT key, began AS at, weight FROM pieces WHERE ended > began
        UNION ALL SELECT key, ended, -weight FROM pieces WHERE ended > began) AS e
      GROUP BY key, at
    ), steps AS (
      SELECT key, at AS began, lead(at) OVER k AS ended, sum(step) OVER k AS level
      FROM edges WINDOW k AS (PARTITION BY key ORDER BY at)
    )
    SELECT key, b AS bucket, max(level)::float8 AS max,
           sum(level * (least(ended, (b + 1) * :bucket) - greatest(began, b * :bucket)))::float8
             AS area
    FROM steps CROSS JOIN LATERAL generate_series(
      floor(began / :bucket)::int, ceil(ended / :bucket)::int - 1) AS b
    WHERE ended IS NOT NULL AND level > 1e-9 GROUP BY key, b"""


_BUCKET = "floor(extract(epoch FROM at - :start)::float8 / :bucket)::int"


def _samples(source: str, column: str) -> str:
    return f"""
    SELECT key, {_BUCKET} AS bucket, avg({column})::float8 AS avg, min({column})::float8 AS min,
           max({column})::float8 AS max
    FROM ({source}) AS s WHERE at >= :start AND at < :end GROUP BY 1, 2"""


def _counters(source: str, column: str) -> str:
    # A counter that fell began anew, and so did the first of a VM that is not older than that.
    return f"""
    WITH told AS (
      SELECT key, at, fresh, {column} AS value,
             lag({column}) OVER (PARTITION BY vm_id ORDER BY at, id) AS before
      FROM ({source}) AS s WHERE at < :end
    )
    SELECT key, {_BUCKET} AS bucket, sum(CASE
             WHEN before IS NULL THEN CASE WHEN fresh THEN value ELSE 0 END
             WHEN value < before THEN value ELSE value - before END)::float8 AS sum
    FROM told WHERE at >= :start GROUP BY 1, 2"""


def _counts(source: str, _column: str) -> str:
    return f"""
    SELECT key, {_BUCKET} AS bucket, count(*)::float8 AS sum
    FROM ({source}) AS s WHERE at >= :start AND at < :end GROUP BY 1, 2"""


def _durations(source: str, _column: str) -> str:
    return f"""
    SELECT key, {_BUCKET} AS bucket, count(*)::float8 AS count,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS p50,
           percentile_cont(0.9) WITHIN GROUP (ORDER BY seconds) AS p90,
           percentile_cont(0.99) WITHIN GROUP (ORDER BY seconds) AS p99
    FROM ({source}) AS s WHERE at >= :start AND at < :end GROUP BY 1, 2"""


_STATEMENTS: dict[Kind, Callable[[str, str], str]] = {
    "level": _levels,
    "cost": _levels,
    "sample": _samples,
    "counter": _counters,
    "count": _counts,
    "duration": _durations,
}
