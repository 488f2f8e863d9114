"""A runner's clock, learned from what comes sooner or later."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remuda.models import watches
from remuda.tasks import recording
from remuda.tasks.recording import Batch, Clock
from remuda.tasks.runtime import Runtime

BEAT = {
    "load": [0.5, 0, 0],
    "running": 1,
    "queued": 2,
    "cores": 4,
    "mem_free": 5,
    "disk_free": 6,
    "moved_files": 7,
    "moved_bytes": 8,
    "uptime": 9.5,
}


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


@pytest.mark.parametrize(
    "bad",
    [
        {"load": []},
        {"load": [math.nan]},
        {"load": ["x"]},
        {"running": -1},
        {"running": 2**31},
        {"mem_free": 2**63},
        {"moved_bytes": None},
        {"uptime": math.inf},
    ],
)
def test_a_heartbeat_that_makes_no_sense_keeps_no_other_from_being_stored(
    bad: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[Any] = []
    monkeypatch.setattr(watches, "record_heartbeats", lambda _, beats: stored.extend(beats))
    runtime = cast(Runtime, SimpleNamespace(transact=lambda work: work(None)))
    recording.record_beats(runtime, {1: {**BEAT, **bad}, 2: BEAT})
    assert stored == [
        {
            "vm_id": 2,
            "load": 0.5,
            "running_jobs": 1,
            "queued_jobs": 2,
            "cores": 4,
            "memory_free_bytes": 5,
            "disk_free_bytes": 6,
            "transferred_files": 7,
            "transferred_bytes": 8,
            "uptime_s": 9.5,
        }
    ]


def test_a_runner_of_old_tells_less() -> None:
    old = {k: v for k, v in BEAT.items() if k not in ("cores", "moved_files", "moved_bytes")}
    found = recording._beat(1, old)
    assert (found["cores"], found["transferred_files"], found["transferred_bytes"]) == (None, 0, 0)
