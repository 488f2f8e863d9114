"""A runner's clock, learned from what comes sooner or later."""

from __future__ import annotations

import pytest

from remuda.tasks.recording import Batch, Clock


def test_what_comes_late_changes_nothing() -> None:
    clock = Clock()
    assert clock.heard(1000.0, came_at=10.0) == 990.0
    assert clock.heard(1001.0, came_at=11.4) == pytest.approx(990.0, abs=0.001)
    assert clock.heard(1002.0, came_at=11.9) == pytest.approx(990.1)


def test_a_machine_that_restarts_has_a_new_clock() -> None:
    clock = Clock()
    clock.heard(100_000.0, came_at=10.0)
    assert clock.heard(5.0, came_at=60.0) == -55.0


def test_entries_of_pushes_keep_their_order_however_late_one_came() -> None:
    clock, batch = Clock(), Batch()
    batch.add({"now": 50.0, "entries": [{"x": 50.0}]}, came_at=1.0, clock=clock)
    batch.add({"now": 50.1, "entries": [{"x": 50.1}]}, came_at=1.9, clock=clock)
    batch.add({"now": 50.2, "entries": [{"x": 50.2}]}, came_at=1.91, clock=clock)
    at = [entry["x"] - offset for entry, offset in batch.entries]
    assert at == pytest.approx([1.0, 1.1, 1.2], abs=0.001)
