"""What the teller shows: each thing once, of this worker's VMs only, sampled above the rate."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery
from sqlalchemy import Engine, text

from remuda.models.exits import record_starts
from remuda.models.states import VmState
from remuda.models.vm_life import move_vm
from remuda.models.watches import claim_watches
from remuda.tasks.flower.teller import Teller
from remuda.tasks.runtime import Runtime
from tests.integration import builders as make

BEAT = {"running": 1, "load": [0.5, 0.4, 0.3]}


class Worker:
    """A worker's teller on the test's database, turned by hand; what it sends is kept."""

    def __init__(
        self, engine: Engine, *, name: str = "w1", mode: str = "on", rate: float = 1000.0
    ) -> None:
        """Watch nothing yet."""
        self.watched: set[int] = set()
        self.sent: list[dict[str, Any]] = []
        self.dropped: list[int] = []
        self.now = 0.0
        runtime = SimpleNamespace(
            settings=SimpleNamespace(flower_events=mode, flower_rate=rate),
            worker=name,
            engine=engine,
            links=SimpleNamespace(watched=lambda: self.watched),
        )
        self.teller = Teller(cast(Runtime, runtime), Celery(), worker=f"{name}@h", always=False)
        wire = SimpleNamespace(send=self.sent.extend, close=lambda: None, drop=self.dropped.append)
        self.teller._wire = cast(Any, wire)

    def watch(self, engine: Engine) -> None:
        """Take the watch of all VMs nobody watches."""
        name = self.teller._runtime.worker
        with engine.begin() as connection:
            found = claim_watches(connection, name, ttl_s=60)
        self.watched |= {row["id"] for row in found}

    def turn(self, *, after_s: float = 2.0) -> list[dict[str, Any]]:
        """Make a turn some seconds later; return what it sends."""
        self.sent.clear()
        self.now += after_s
        self.teller._turn(self.now)
        return list(self.sent)

    def told(self, **more: Any) -> list[str]:
        """Make a turn; return the kinds of its events, of sweeps and VMs too."""
        return [event["type"] for event in self.turn(**more)]


@pytest.fixture
def worker(engine: Engine) -> Worker:
    """One that watches a pool of two VMs, with jobs placed on both."""
    made = Worker(engine)
    with engine.begin() as connection:
        pool = make.make_pool(connection)
        make.make_vms(connection, pool, 2)
        make.make_jobs(connection, pool, 3)
        make.dispatch(connection)
    made.watch(engine)
    return made


def attempts(engine: Engine) -> list[tuple[int, int]]:
    """Return (attempt, VM) of all there are."""
    with engine.connect() as connection:
        return [
            tuple(row)
            for row in connection.execute(text("SELECT id, vm_id FROM attempts ORDER BY id"))
        ]


def test_vms_come_online_and_what_is_placed_is_told_once(engine: Engine, worker: Worker) -> None:
    assert Counter(worker.told()) == {"worker-online": 2, "task-received": 3}
    assert worker.told() == []
    assert worker.told() == []


def test_starts_and_ends_are_told_once_each(engine: Engine, worker: Worker) -> None:
    worker.turn()
    (first, vm), (second, other), _ = attempts(engine)
    with engine.begin() as connection:
        record_starts(connection, vm, {first: 1.0})
        make.record(connection, other, make.ended(second))
    worker.teller.recorded(vm, [first], [])
    worker.teller.recorded(other, [], [second])
    assert sorted(worker.told()) == ["task-started", "task-started", "task-succeeded"]
    assert worker.told() == []
    with engine.begin() as connection:
        make.record(connection, vm, make.ended(first))
    worker.teller.recorded(vm, [], [first])
    assert worker.told() == ["task-succeeded"]
    assert worker.told() == []


def test_ends_nobody_hands_over_are_found(engine: Engine, worker: Worker) -> None:
    """As of an attempt whose outputs another worker has fetched, or that was lost."""
    worker.turn()
    (first, vm), *_ = attempts(engine)
    with engine.begin() as connection:
        make.record(connection, vm, make.lost(first))
    assert worker.told() == ["task-retried"]


def test_a_monitor_that_comes_late_is_told_what_is_live(engine: Engine, worker: Worker) -> None:
    worker.turn()
    worker.teller.wanted(anew=True)
    assert Counter(worker.told()) == {"worker-online": 2, "task-received": 3}


def test_another_workers_vms_are_not_spoken_for(engine: Engine, worker: Worker) -> None:
    second = Worker(engine, name="w2")
    assert second.told() == []
    worker.turn()
    with engine.begin() as connection:
        connection.execute(text("UPDATE vms SET watcher = 'w2'"))
    second.watched, worker.watched = set(worker.watched), set()
    assert worker.told() == []
    assert Counter(second.told()) == {"worker-online": 2, "task-received": 3}
    (first, vm), *_ = attempts(engine)
    with engine.begin() as connection:
        make.record(connection, vm, make.ended(first))
    assert worker.told() == []
    assert second.told() == ["task-started", "task-succeeded"]


def test_heartbeats_are_as_rare_as_their_frequency_says(engine: Engine, worker: Worker) -> None:
    (online, *_) = [e for e in worker.turn() if e["type"] == "worker-online"]
    vm = min(worker.watched)
    beats = 0
    for _ in range(40):
        worker.teller.beaten({vm: BEAT})
        beats += worker.told(after_s=1.0).count("worker-heartbeat")
    assert 40 / online["freq"] <= beats <= 1 + 40 / (0.8 * online["freq"])
    worker.teller.recorded(vm, [], [10**9])
    worker.teller.beaten({vm: BEAT})
    (beat,) = worker.turn(after_s=60.0)
    assert (beat["active"], beat["processed"], beat["loadavg"]) == (1, 1, [0.5, 0.4, 0.3])


def test_a_vm_that_goes_is_offline_after_its_attempts(engine: Engine, worker: Worker) -> None:
    worker.turn()
    vm = attempts(engine)[0][1]
    with engine.begin() as connection:
        live = [a for a, on in attempts(engine) if on == vm]
        make.record(connection, vm, *[make.lost(a) for a in live])
        move_vm(connection, vm, VmState.STOPPING)
    worker.watched.discard(vm)
    told = worker.told()
    assert told == ["task-retried"] * len(live) + ["worker-offline"]
    assert worker.told() == []


def test_more_than_the_rate_is_sampled_and_says_so(engine: Engine) -> None:
    worker = Worker(engine, rate=2.0)
    with engine.begin() as connection:
        pool = make.make_pool(connection, slots_per_vm=50)
        make.make_vms(connection, pool)
        make.make_jobs(connection, pool, 50)
        make.dispatch(connection)
    worker.watch(engine)
    shown = worker.told(after_s=0.1).count("task-received")
    assert shown == 4  # a burst of two seconds
    found = attempts(engine)
    with engine.begin() as connection:
        make.record(connection, found[0][1], *[make.ended(a) for a, _ in found])
    worker.teller.recorded(found[0][1], [], [a for a, _ in found])
    told = worker.turn(after_s=0.1)
    assert sum(event["type"] == "task-succeeded" for event in told) == shown
    (_, end) = worker.turn(after_s=11.0)
    assert end["result"] == "4 of 50 ended attempts shown (limit 2/s)"
    assert worker.told(after_s=11.0) == []


def test_where_nobody_listens_nothing_is_kept(engine: Engine) -> None:
    worker = Worker(engine, mode="auto")
    for _ in range(10_000):
        worker.teller.recorded(1, [1], [1])
        worker.teller.beaten({1: BEAT})
    worker.teller.swept("t", "remuda.dispatch", began=0.0, found="2 placed", failed=False)
    assert worker.teller._hints.empty()
    assert worker.turn() == []


def test_the_queue_has_an_end(engine: Engine, worker: Worker) -> None:
    for _ in range(5000):
        worker.teller.recorded(1, [], [1, 2])
    assert sum(worker.dropped) == 2 * 4000


@pytest.mark.parametrize(("mode", "after"), [("auto", True), ("on", True), ("off", False)])
def test_who_listens(engine: Engine, mode: str, after: bool) -> None:
    teller = Worker(engine, mode=mode).teller
    assert teller.listening == (mode == "on")
    teller.wanted()
    assert teller.listening == after
    teller.unwanted()
    assert teller.listening == (mode == "on")


def test_a_sweep_that_finds_nothing_is_told_once_a_minute(engine: Engine, worker: Worker) -> None:
    worker.turn()
    for found in (None, None, "2 placed on 1 VM", None):
        worker.teller.swept("t", "remuda.dispatch", began=time.time(), found=found, failed=False)
    results = [event["result"] for event in worker.turn() if event["type"] == "task-succeeded"]
    assert results == ["nothing to do", "2 placed on 1 VM"]
