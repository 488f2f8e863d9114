"""What follows from a budget."""

from __future__ import annotations

import pytest

from remuda.workers.budgets import level_of, stop_reason, whose


@pytest.mark.parametrize(
    ("spent", "warn", "stop", "level"),
    [
        (0, 1, 2, "ok"),
        (1, 1, 2, "warn"),
        (2, 1, 2, "stop"),
        (9, 1, None, "warn"),
        (9, None, 10, "ok"),
        (0, None, 0, "stop"),
        (5, 5, 5, "stop"),
    ],
)
def test_levels(spent: float, warn: float | None, stop: float | None, level: str) -> None:
    assert level_of(spent, warn=warn, stop=stop) == level


def test_reasons() -> None:
    said = stop_reason("owner alice", spent=10.5, stop=10, period="month")
    assert said == "the budget of owner alice is used up: 10.50 of 10.00 spent this month"
    assert stop_reason("pool a", spent=1, stop=1, period="day").endswith("spent today")


def test_whose_they_are() -> None:
    assert whose(pool="cloud", owner=None) == "pool cloud"
    assert whose(pool=None, owner="alice") == "owner alice"
    assert whose(pool="cloud", owner="alice") == "owner alice in pool cloud"
