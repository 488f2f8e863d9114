"""When a job that can wait is started: the best hour, never too late; and what is refused."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remuda.deferring import Hours, best_delay_s, hours_of, read_hours
from remuda.errors import BadInput
from remuda.policies import zone_of
from remuda.spec import JobSpec
from tests.examples import examples

FLAT = [1.0] * 24


def hours(zone: str = "UTC", **lower: float) -> Hours:
    values = list(FLAT)
    for hour, value in lower.items():
        values[int(hour[1:])] = value
    return Hours(tuple(values), tuple(values), zone_of(zone))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


MONDAY = at("2026-07-06T10:20:00Z")


def chosen(
    table: Hours, within_h: float, run_h: float | None = None, now: datetime = MONDAY
) -> str:
    delay = best_delay_s(
        table, now, within_s=within_h * 3600, run_s=None if run_h is None else run_h * 3600
    )
    return f"{now + timedelta(seconds=delay):%d %H:%M}"


def test_the_best_hour_within_its_time() -> None:
    table = hours(h14=0.5, h3=0.1)
    assert chosen(table, 2) == "06 10:20"
    assert chosen(table, 5) == "06 14:00"
    assert chosen(table, 3.7) == "06 10:20"  # too near to its end: a VM has to start
    assert chosen(table, 24) == "07 03:00"
    assert chosen(hours(), 24) == "06 10:20"  # as good as any


def test_all_of_its_run_counts() -> None:
    table = hours(h12=0.4, h13=3.0, h20=0.6, h21=0.6)
    assert chosen(table, 24, 1) == "06 12:00"
    assert chosen(table, 24, 2) == "06 20:00"


def test_hours_are_those_of_the_zone() -> None:
    assert chosen(hours("Asia/Kathmandu", h18=0.5), 5) == "06 12:15"
    table = Hours(tuple(FLAT), tuple([0.1] * 24), zone_of("UTC"))
    assert chosen(table, 24 * 6) == "11 00:00"  # Saturday


@settings(max_examples=examples(60))
@given(
    st.lists(st.floats(0, 100), min_size=24, max_size=24),
    st.floats(60, 5 * 86_400),
    st.none() | st.floats(1, 86_400),
    st.integers(0, 366 * 86_400),
)
def test_never_late_and_never_worse_than_now(
    values: list[float], within_s: float, run_s: float | None, second: int
) -> None:
    table = Hours(tuple(values), tuple(values), zone_of("Europe/Paris"))
    now = at("2026-01-01T00:00Z") + timedelta(seconds=second)
    delay = best_delay_s(table, now, within_s=within_s, run_s=run_s)
    assert 0 <= delay <= within_s
    span = run_s or 3600.0
    assert table.mean(now + timedelta(seconds=delay), span) <= table.mean(now, span) + 1e-6


def test_files(tmp_path: Path) -> None:
    given_ = {"hours": [*range(24)], "weekend": FLAT, "time_zone": "Europe/Paris"}
    (tmp_path / "a.json").write_text(json.dumps(given_))
    (tmp_path / "a.toml").write_text(
        f'time_zone = "Europe/Paris"\nhours = {[*range(24)]}\nweekend = {FLAT}\n'
    )
    found = read_hours(tmp_path / "a.json")
    assert found == read_hours(tmp_path / "a.toml")
    assert found.at(at("2026-07-06T10:20Z")) == 12
    assert found.at(at("2026-07-11T10:20Z")) == 1
    with pytest.raises(BadInput, match="needs hours"):
        read_hours(None)
    with pytest.raises(BadInput, match="No such file"):
        read_hours(tmp_path / "none.toml")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        read_hours(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ([], "must be a mapping"),
        ({}, "hours must be a list of 24"),
        ({"hours": FLAT[:23]}, "hours must be a list of 24"),
        ({"hours": [*FLAT[:23], math.nan]}, "hours must be a list of 24"),
        ({"hours": [*FLAT[:23], True]}, "hours must be a list of 24"),
        ({"hours": FLAT, "weekend": "x"}, "weekend must be a list of 24"),
        ({"hours": FLAT, "time_zone": "Mars"}, "no time zone"),
        ({"hours": FLAT, "zone": "UTC"}, "no key zone"),
    ],
)
def test_nonsense_is_refused(wrong: Any, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        hours_of(wrong)


def test_a_deferrable_job_says_by_when() -> None:
    assert JobSpec(["x"], deferrable=True, max_queue_s=60).deferrable
    with pytest.raises(BadInput, match="deferrable needs max_queue_s"):
        JobSpec(["x"], deferrable=True)
    with pytest.raises(BadInput, match="deferrable must be True or False"):
        JobSpec(["x"], deferrable=1, max_queue_s=60)  # type: ignore[arg-type]
