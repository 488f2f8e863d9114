"""Policies: which rules when, also as the clocks change; and what is refused, by name."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remuda.errors import BadInput
from remuda.policies import DAY_MIN, ElasticSettings, Period, Policy, next_change, policy_at
from remuda.policy_rows import MAX_PERIODS, MAX_POLICIES, policies_of, policy_row
from tests.examples import examples

ZONES = ("UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu")
SIZE = ElasticSettings(maximum_total_slots=4)
WEEK = [
    {
        "name": "day",
        "kind": "queue",
        "time_zone": "Europe/Paris",
        "periods": [
            {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "08:00", "to": "18:00"},
            {"days": ["sat"], "from": "09:00", "to": "12:00"},
        ],
        "minimum_total_slots": 2,
        "maximum_total_slots": 20,
    },
    {"name": "night", "kind": "fixed", "slots": 4},
]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def ruling(policies: tuple[Policy, ...], now: datetime) -> str:
    found = policy_at(policies, now)
    return found.name if found is not None else ""


@st.composite
def policies(draw: st.DrawFn) -> tuple[Policy, ...]:
    made = []
    for number in range(draw(st.integers(1, 4))):
        periods = []
        for _ in range(draw(st.integers(1, 3))):
            begin = draw(st.integers(0, DAY_MIN - 1))
            days = draw(st.sets(st.integers(0, 6), min_size=1))
            periods.append(
                Period(tuple(sorted(days)), begin, draw(st.integers(begin + 1, DAY_MIN)))
            )
        zone = draw(st.sampled_from(ZONES))
        made.append(Policy(f"p{number}", "queue", SIZE, tuple(periods), zone))
    return tuple(made)


# Around the changes of clocks too: the last Sundays of March and October, and others elsewhere.
moments = st.integers(0, 365 * 86_400).map(
    lambda seconds: at("2026-01-01T00:00Z") + timedelta(seconds=seconds)
) | st.sampled_from(
    ["2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2026-04-05", "2026-10-04"]
).flatmap(
    lambda day: st.integers(-600, 1800).map(lambda m: at(f"{day}T00:00Z") + timedelta(minutes=m))
)


@given(policies(), moments)
def test_the_first_that_is_active_rules(given_: tuple[Policy, ...], now: datetime) -> None:
    found = policy_at(given_, now)
    active = [policy for policy in given_ if policy.is_active(now)]
    assert found is (active[0] if active else None)


@settings(max_examples=examples(60))
@given(policies(), moments, st.data())
def test_nothing_changes_before_the_next_change(
    given_: tuple[Policy, ...], now: datetime, data: st.DataObject
) -> None:
    present, change = policy_at(given_, now), next_change(given_, now)
    if change is None:
        for hours in range(0, 24 * 8, 3):
            assert policy_at(given_, now + timedelta(hours=hours)) is present
        return
    when, then = change
    assert when > now
    assert then is not present
    assert policy_at(given_, when) is then
    assert policy_at(given_, when - timedelta(seconds=1)) is present or when - now < timedelta(0, 1)
    span_s = int((when - now).total_seconds())
    between = data.draw(st.integers(0, max(0, span_s - 1)))
    assert policy_at(given_, now + timedelta(seconds=between)) is present


def test_a_week() -> None:
    found = policies_of(WEEK)
    monday = {"05:59": "night", "07:00": "day", "15:59": "day", "16:00": "night"}
    summer = {clock: ruling(found, at(f"2026-07-06T{clock}Z")) for clock in monday}
    assert summer == monday  # Paris is two hours ahead
    assert ruling(found, at("2026-01-05T06:59Z")) == "night"
    assert ruling(found, at("2026-01-05T07:00Z")) == "day"  # one hour ahead
    assert ruling(found, at("2026-07-11T09:59Z")) == "day"
    assert ruling(found, at("2026-07-11T10:00Z")) == "night"
    assert ruling(found, at("2026-07-12T09:00Z")) == "night"
    change = next_change(found, at("2026-07-10T17:00Z"))
    assert change is not None
    assert (change[0], change[1]) == (at("2026-07-11T07:00Z"), found[0])


def test_none_rules_when_none_is_active() -> None:
    [only] = policies_of(WEEK[:1])
    assert policy_at([only], at("2026-07-12T09:00Z")) is None
    assert next_change([only], at("2026-07-12T09:00Z")) == (at("2026-07-13T06:00Z"), only)
    assert policy_at([], at("2026-07-12T09:00Z")) is None
    assert next_change([], at("2026-07-12T09:00Z")) is None
    assert next_change(policies_of(WEEK[1:]), at("2026-07-12T09:00Z")) is None


def test_the_clocks_change() -> None:
    """An hour that is skipped is never; one that comes twice is twice."""
    early = {"name": "early", "kind": "fixed", "slots": 1, "time_zone": "Europe/Paris"}
    found = policies_of([{**early, "periods": [{"from": "02:15", "to": "02:45"}]}])
    skipped = at("2026-03-29T00:50Z")
    change = next_change(found, skipped)
    assert change is not None
    assert change[0] == at("2026-03-30T00:15Z")
    half_skipped = policies_of([{**early, "periods": [{"from": "02:15", "to": "03:30"}]}])
    change = next_change(half_skipped, skipped)
    assert change is not None
    assert change[0] == at("2026-03-29T01:00Z")
    now, seen = at("2026-10-24T22:00Z"), []
    while now < at("2026-10-25T04:00Z"):
        change = next_change(found, now)
        assert change is not None
        now = change[0]
        seen.append(f"{now:%H:%M}")
    assert seen[:4] == ["00:15", "00:45", "01:15", "01:45"]


def test_they_are_written_as_they_are_read() -> None:
    found = policies_of(WEEK)
    rows = [policy_row(policy) for policy in found]
    assert policies_of(rows) == found
    assert policies_of(found) == found
    assert rows[0]["periods"][0]["days"][0] == "monday"
    assert rows[1] == {"name": "night", "kind": "fixed", "slots": 4}
    assert policies_of([]) == ()
    whole = policies_of([{**WEEK[0], "periods": [{}]}])[0].periods
    assert whole == (Period(tuple(range(7)), 0, DAY_MIN),)


def changed(**more: Any) -> list[dict[str, Any]]:
    return [{**WEEK[0], **more}]


def periods(*given_: dict[str, Any]) -> list[dict[str, Any]]:
    return changed(periods=list(given_))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("x", "policies must be a list"),
        ({"name": "a"}, "policies must be a list"),
        ([7], r"policies\[0\] must be a mapping"),
        ([WEEK[0], WEEK[0]], r"policies\[1\].name is 'day' like"),
        ([WEEK[1], WEEK[0]], r"policies\[1\] would never rule"),
        (WEEK[:1] * (MAX_POLICIES + 1), "at most 20"),
        (changed(kind="cubic"), r"policies\[0\].kind"),
        (changed(kind=None), r"policies\[0\].kind"),
        (changed(name=""), r"policies\[0\].name"),
        (changed(name="x" * 10_000), r"policies\[0\].name"),
        (changed(name="é"), r"policies\[0\].name"),
        (changed(slots=3), "has no key slots"),
        ([{"name": "a", "kind": "fixed"}], r"policies\[0\].slots"),
        ([{"name": "a", "kind": "fixed", "slots": -1}], r"policies\[0\].slots"),
        ([{"name": "a", "kind": "fixed", "slots": 1.5}], r"policies\[0\].slots"),
        ([{"name": "a", "kind": "fixed", "slots": True}], r"policies\[0\].slots"),
        ([{"name": "a", "kind": "fixed", "slots": 1, "time_zone": "UTC"}], "is for periods"),
        ([{"name": "a", "kind": "queue"}], "needs maximum_total_slots"),
        (changed(resize_factor=0), r"policies\[0\].resize_factor"),
        (changed(resize_factor=7), r"policies\[0\].resize_factor"),
        (changed(resize_factor=math.nan), r"policies\[0\].resize_factor"),
        (changed(minimum_total_slots=21), r"policies\[0\].minimum_total_slots \(21\) is more than"),
        (changed(minimum_idle_slots=21), r"policies\[0\].minimum_idle_slots \(21\) is more than"),
        (changed(minimum_idle_time_seconds=-1), r"policies\[0\].minimum_idle_time_seconds"),
        (changed(minimum_idle_time_seconds=math.inf), r"policies\[0\].minimum_idle_time_seconds"),
        (changed(resize_period=0.5), r"policies\[0\].resize_period"),
        (changed(resize_period="90"), r"policies\[0\].resize_period"),
        (changed(time_zone="Mars/Olympus"), r"policies\[0\].time_zone"),
        (changed(time_zone="../../etc/passwd"), r"policies\[0\].time_zone"),
        (changed(time_zone="x" * 10_000), r"policies\[0\].time_zone"),
        (changed(time_zone=7), r"policies\[0\].time_zone"),
        (changed(periods=[]), r"policies\[0\].periods"),
        (changed(periods={}), r"policies\[0\].periods"),
        (changed(periods=[{"days": ["mon"]}] * (MAX_PERIODS + 1)), "at most 50"),
        (periods({"until": "12:00"}), r"periods\[0\] has no key until"),
        (periods({"days": "mon"}), r"periods\[0\].days"),
        (periods({"days": []}), r"periods\[0\].days"),
        (periods({"days": ["mo"]}), r"periods\[0\].days"),
        (periods({"days": ["mon", "Monday"]}), "names monday twice"),
        (periods({"from": "8:00"}), r"periods\[0\].from"),
        (periods({"from": "08:60"}), r"periods\[0\].from"),
        (periods({"to": "24:01"}), r"periods\[0\].to"),
        (periods({"to": 18}), r"periods\[0\].to"),
        (periods({"from": "22:00", "to": "06:00"}), r"periods\[0\].to \(06:00\) is not after from"),
        (periods({"from": "12:00", "to": "12:00"}), r"periods\[0\].to"),
        (
            periods({"days": ["mon", "tue"], "to": "12:00"}, {"days": ["tue"], "from": "11:59"}),
            r"periods\[1\] overlaps policies\[0\].periods\[0\] on tuesday",
        ),
    ],
)
def test_nonsense_is_refused_by_name(wrong: Any, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        policies_of(wrong)


def test_periods_may_touch() -> None:
    touching = periods({"to": "12:00"}, {"from": "12:00"}, {"days": ["mon"], "from": "12:00"})
    with pytest.raises(BadInput, match=r"periods\[2\] overlaps"):
        policies_of(touching)
    assert len(policies_of(periods({"to": "12:00"}, {"from": "12:00"}))[0].periods) == 2


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(
    st.sampled_from([*WEEK[0], "slots"]),
    anything,
)
def test_whatever_is_given_is_read_or_refused(key: str, value: Any) -> None:
    try:
        found = policies_of([{**WEEK[0], key: value}])
    except BadInput:
        return
    assert policies_of([policy_row(policy) for policy in found]) == found
