"""VMs and attempts in the words of Celery's event protocol."""

from __future__ import annotations

from typing import Any

import pytest
from celery.events.state import State
from hypothesis import given
from hypothesis import strategies as st

from remuda.tasks.flower import ids, wording
from remuda.tasks.flower.sampling import Sampler

ROW: dict[str, Any] = {
    "attempt_id": 12,
    "job_id": 7,
    "epoch": 1,
    "state": "PLACED",
    "reason": None,
    "exit_code": None,
    "signal": None,
    "message": None,
    "wall_s": None,
    "placed_at": 1000.0,
    "started_at": None,
    "ended_at": None,
    "vm_id": 3,
    "vm": "sim-3",
    "pool": "sim",
    "owner": "ann",
    "command": ["./fit", "{index}", "a b"],
    "name": "",
    "params": None,
    "array_id": 4,
    "array_index": 5,
    "again": False,
}


def shown(*rows: dict[str, Any]) -> dict[str, Any]:
    """Return the task as a monitor has it after the events of these rows in turn."""
    state, said = State(), 0
    for row in rows:
        events, said = wording.attempt_events(row, said=said)
        for event in events:
            state.event({"local_received": event["timestamp"], "clock": 1, **event})
    (task,) = state.tasks.values()
    found: dict[str, Any] = {name: getattr(task, name) for name in task._fields}
    return found | {"worker": task.worker.hostname}


@given(st.integers(0, ids.MOST))
def test_an_attempt_and_its_task_id_are_made_from_each_other(attempt: int) -> None:
    assert ids.attempt_id(ids.task_id(attempt)) == attempt


@given(st.uuids())
def test_other_task_ids_are_nobodys(task: Any) -> None:
    assert ids.attempt_id(str(task)) is None


@pytest.mark.parametrize("wrong", [-1, ids.MOST + 1])
def test_there_is_no_task_id_beyond_the_digits(wrong: int) -> None:
    with pytest.raises(ValueError, match="has no task id"):
        ids.task_id(wrong)


def test_a_placed_attempt_tells_what_it_is() -> None:
    task = shown(ROW)
    assert task["state"] == "RECEIVED"
    assert task["uuid"] == "72656d75-6461-8000-8000-000000000012"
    assert task["name"] == "./fit '{index}' 'a b'"  # one for all jobs of the array
    assert task["args"] == "./fit 5 'a b'"
    assert task["kwargs"] == "job 7, array 4[5], owner ann"
    assert task["worker"] == "sim-3@sim"


def test_what_was_told_is_not_told_again() -> None:
    events, said = wording.attempt_events(ROW)
    assert [event["type"] for event in events] == ["task-received"]
    assert wording.attempt_events(ROW, said=said) == ([], said)
    started = ROW | {"state": "STARTED", "started_at": 1001.0}
    events, said = wording.attempt_events(started, said=said)
    assert [event["type"] for event in events] == ["task-started"]
    over = started | {"state": "COLLECTED", "reason": "OK", "exit_code": 0, "ended_at": 1002.0}
    events, said = wording.attempt_events(over, said=said)
    assert [event["type"] for event in events] == ["task-succeeded"]
    assert said == wording.ENDED


STARTED = ROW | {"state": "STARTED", "started_at": 1001.0}
OVER = STARTED | {"ended_at": 1003.5, "wall_s": 2.5}


@pytest.mark.parametrize(
    ("end", "state", "result"),
    [
        ({"state": "COLLECTED", "reason": "OK", "exit_code": 0}, "SUCCESS", "OK, exit code 0"),
        (
            {"state": "COLLECTED", "reason": "NONZERO", "exit_code": 3},
            "FAILURE",
            "NONZERO, exit code 3",
        ),
        (
            {"state": "COLLECTED", "reason": "NONZERO", "exit_code": 3, "again": True},
            "RETRY",
            "NONZERO, exit code 3",
        ),
        ({"state": "LOST", "reason": "LOST", "again": True}, "RETRY", "LOST"),
        ({"state": "LOST", "reason": "LOST"}, "FAILURE", "LOST"),
        (
            {"state": "CANCELLED", "reason": "CANCELLED", "signal": 15},
            "REVOKED",
            "CANCELLED, SIGTERM",
        ),
        ({"state": "CANCELLED", "reason": None, "again": True}, "RETRY", "CANCELLED"),
        ({"state": "FAILED", "reason": "STAGING", "message": "no a.csv"}, "FAILURE", "STAGING"),
        ({"state": "COLLECTED", "reason": "SIGNALLED", "signal": 40}, "FAILURE", "SIGNALLED, signal 40"),
    ],
)  # fmt: skip
def test_an_end_tells_how(end: dict[str, Any], state: str, result: str) -> None:
    task = shown(STARTED, OVER | end)
    assert (task["state"], task["result"], task["runtime"]) == (state, result, 2.5)
    assert task["traceback"] == end.get("message") or "recalled" in task["traceback"]


def test_a_quick_attempt_is_told_at_once() -> None:
    task = shown(OVER | {"state": "COLLECTED", "reason": "OK", "exit_code": 0, "name": "fit"})
    assert (task["name"], task["received"], task["started"]) == ("fit", 1000.0, 1001.0)
    assert (task["succeeded"], task["runtime"]) == (1003.5, 2.5)


def test_long_words_are_cut() -> None:
    task = shown(ROW | {"command": ["echo", "x" * 10_000 + "\n\x1b"], "params": None})
    assert len(task["name"]) == 80
    assert len(task["args"]) == 160
    assert "\n" not in task["args"]


def test_a_vm_is_online_as_long_as_its_heartbeats_come() -> None:
    import time

    now, state = time.time(), State()
    for kind, at in (("online", now - 60), ("heartbeat", now)):
        event = wording.vm_event(
            kind, "sim-3@sim", now=at, freq_s=5, active=2, processed=9, load=[1.234, 0, 0]
        )
        state.event(event | {"local_received": at, "clock": 1})
    vm = state.workers["sim-3@sim"]
    assert vm.alive
    assert (vm.active, vm.processed, vm.loadavg) == (2, 9, [1.23, 0, 0])
    assert vm.heartbeat_expires == pytest.approx(now + 10)
    event = wording.vm_event("offline", "sim-3@sim", now=now, freq_s=5)
    state.event(event | {"local_received": now, "clock": 1})
    assert not vm.alive


def test_what_is_left_out_is_told() -> None:
    _, end = wording.sampled_events("t", "w@h", now=1.0, shown=500, ended=5000, rate=50)
    assert end["result"] == "500 of 5,000 ended attempts shown (limit 50/s)"


def test_a_sweeps_error_is_one_line() -> None:
    events = wording.sweep_events(
        "t", "remuda.dispatch", "w@h", began=1.0, ended=1.5, found="bad\nSELECT …", failed=True
    )
    assert events[-1]["type"] == "task-failed"
    assert events[-1]["exception"] == "bad"
    assert events[-1]["runtime"] == 0.5


@pytest.mark.parametrize(
    ("ids_", "told"), [([5], "5"), ([5, 7], "5, 7"), (list(range(3, 26)), "3 … 25 (23)")]
)
def test_ids_are_told_in_short(ids_: list[int], told: str) -> None:
    assert wording.id_list(ids_) == told


@given(st.floats(1, 1000), st.lists(st.tuples(st.floats(0, 5), st.integers(0, 5000)), max_size=30))
def test_never_more_than_the_rate(rate: float, batches: list[tuple[float, int]]) -> None:
    """Over any time: the burst of two seconds, and the rate."""
    sampler, now, let_in = Sampler(rate), 100.0, 0
    for pause_s, count in batches:
        now += pause_s
        taken = sampler.admit(range(count), now)
        assert len(set(taken)) == len(taken) <= count
        let_in += len(taken)
    assert let_in <= 2 * rate + rate * (now - 100.0) + 1e-6


def test_few_are_all_let_in_and_many_evenly() -> None:
    sampler = Sampler(10)
    assert sampler.admit([1, 2, 3], 0.0) == [1, 2, 3]
    assert sampler.admit(range(0, 170), 0.0) == list(range(0, 170, 10))
    assert sampler.admit([1], 0.0) == []
    assert sampler.admit([1], 0.1) == [1]
