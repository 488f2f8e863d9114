"""Traces of jobs, to simulate pools with: read from files, or made up from a few numbers."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from remuda.checks import shown
from remuda.errors import BadInput

__all__ = ["PATTERNS", "Trace", "TraceRow", "read_trace", "synthetic_trace"]

MOST_JOBS = 1_000_000
PATTERNS = ("steady", "bursts", "daily")
_YEAR_S = 366 * 86_400.0
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class TraceRow(NamedTuple):
    """A job: seconds from the begin of the trace, how long it runs, what it takes, its priority."""

    submit_s: float
    wall_s: float
    cores: int = 1
    memory_bytes: int = 0
    priority: int = 0


class Trace(NamedTuple):
    """Jobs in the order of their submission. `start`: when the trace began, None: nobody knows."""

    jobs: list[TraceRow]
    start: datetime | None = None


def read_trace(path: Path) -> Trace:
    """Read a .csv (with a line of names) or .jsonl file; raises BadInput naming line and field.

    Fields: `submit_s` (seconds) or `submitted_at` (a time), `wall_s`, and if wanted `cores` (1),
    `memory_bytes` (0; or 2G), `priority` (0), `count` (1: so many alike).
    """
    if path.suffix not in (".csv", ".jsonl", ".ndjson"):
        raise BadInput(f"{shown(str(path))} is neither .csv nor .jsonl")
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    try:
        return trace_of(rows, what=path.name)
    except OSError as error:
        raise BadInput(f"cannot read {shown(str(path))}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path.name} is no text that can be read: {error}") from None


def trace_of(rows: Iterable[tuple[int, Mapping[str, Any]]], *, what: str = "the trace") -> Trace:
    """Return the trace that (line, fields) describe; raises BadInput naming both."""
    jobs: list[TraceRow] = []
    times: set[bool] = set()
    for line, row in rows:
        where = f"{what}, line {line}"
        begin, is_time = _submitted(where, row)
        times.add(is_time)
        job = TraceRow(
            begin,
            _number(where, row, "wall_s", most=_YEAR_S),
            int(_number(where, row, "cores", 1, least=1, most=100_000, whole=True)),
            _memory(where, row),
            int(_number(where, row, "priority", 0, least=-1000, most=1000, zero=True, whole=True)),
        )
        count = int(_number(where, row, "count", 1, least=1, most=MOST_JOBS, whole=True))
        if len(jobs) + count > MOST_JOBS:
            raise BadInput(f"{where}: more than {MOST_JOBS} jobs are too many")
        jobs += [job] * count
    if not jobs:
        raise BadInput(f"{what} holds no job")
    if len(times) > 1:
        raise BadInput(f"{what} has both submit_s and submitted_at")
    first = min(job.submit_s for job in jobs)
    if times == {True}:
        jobs = [job._replace(submit_s=job.submit_s - first) for job in jobs]
    jobs.sort(key=lambda job: job.submit_s)
    if jobs[-1].submit_s > _YEAR_S:
        raise BadInput(f"{what} is longer than a year")
    return Trace(jobs, datetime.fromtimestamp(first, UTC) if times == {True} else None)


def synthetic_trace(
    *,
    jobs: int = 500,
    span_s: float = 8 * 3600,
    wall_s: float = 600,
    cores: int = 1,
    pattern: str = "daily",
    seed: int = 1,
) -> Trace:
    """Make up jobs, the same for the same arguments: run times are exponential, of this mean.

    `cores`: 1 up to so many. `pattern`: `steady`, `bursts` (a few crowds), `daily` (most at noon).
    """
    for name, value, most in (
        ("jobs", jobs, MOST_JOBS),
        ("cores", cores, 1000),
        ("seed", seed, 1e9),
    ):
        if type(value) is not int or not (0 if name == "seed" else 1) <= value <= most:
            raise BadInput(f"{name} must be a whole number up to {most:.0f}, not {shown(value)}")
    for name, time_s in (("span_s", span_s), ("wall_s", wall_s)):
        if type(time_s) not in (int, float) or not 0 < time_s <= _YEAR_S:
            raise BadInput(f"{name} must be a number of seconds up to a year, not {shown(time_s)}")
    if pattern not in PATTERNS:
        raise BadInput(f"pattern must be one of {', '.join(PATTERNS)}, not {shown(pattern)}")
    chance = random.Random(seed)
    crowds = [chance.uniform(0, 0.9) for _ in range(4)]
    made = []
    for _ in range(jobs):
        if pattern == "steady":
            at = chance.random()
        elif pattern == "bursts":
            at = min(1.0, chance.choice(crowds) + chance.expovariate(50))
        else:
            at = min(1.0, max(0.0, chance.gauss(0.5, 0.17)))
        wall = round(max(1.0, min(_YEAR_S, chance.expovariate(1 / wall_s))), 3)
        made.append(TraceRow(round(at * span_s, 3), wall, chance.randint(1, cores)))
    return Trace(sorted(made))


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        for row in reader:
            yield (
                reader.line_num,
                {str(k).strip(): v for k, v in row.items() if v not in (None, "")},
            )


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadInput(f"{path.name}, line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise BadInput(f"{path.name}, line {number} must be an object, not {shown(row)}")
            yield number, row


def _submitted(where: str, row: Mapping[str, Any]) -> tuple[float, bool]:
    if "submitted_at" not in row:
        return _number(where, row, "submit_s", most=_YEAR_S, zero=True), False
    value = row["submitted_at"]
    try:
        at = value if isinstance(value, datetime) else datetime.fromisoformat(str(value)[:60])
    except ValueError:
        raise BadInput(f"{where}: submitted_at must be a time, not {shown(value)}") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp(), True


def _number(
    where: str,
    row: Mapping[str, Any],
    name: str,
    default: float | None = None,
    *,
    least: float = 0,
    most: float,
    zero: bool = False,
    whole: bool = False,
) -> float:
    value = row.get(name, default)
    try:
        number = float(value) if isinstance(value, (str, int, float)) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    good = not isinstance(value, bool) and least <= number <= most and (zero or number > 0)
    if not good or (whole and number != int(number)):
        kind = "whole number" if whole else "number"
        bound = "from" if zero or least else "above"
        raise BadInput(
            f"{where}: {name} must be a {kind} {bound} {least:g} to {most:g}, not {shown(value)}"
        )
    return number


def _memory(where: str, row: Mapping[str, Any]) -> int:
    value = row.get("memory_bytes", 0)
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match:
        size = float(match[1]) * 1024 ** _POWERS[match[2].upper()]
        return int(_number(where, {"memory_bytes": size}, "memory_bytes", most=1e15, zero=True))
    return int(_number(where, row, "memory_bytes", 0, most=1e15, zero=True))
