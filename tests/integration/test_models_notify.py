"""What committing transactions say to whom: the wake-ups of workers, producers and followers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.errors import DatabaseUnavailable
from remuda.models import budgets, cancel, leases, requests
from remuda.models.database import DONE_CHANNEL, OUTPUT_CHANNEL, WAKE_CHANNEL, Listener
from remuda.models.pool_life import change_pool, close_pool
from remuda.models.sizing import due_pools, store_state
from remuda.models.states import PoolState, VmState
from remuda.models.submit import owner_id
from remuda.models.vm_life import move_vm
from tests.integration.builders import (
    OWNER,
    dispatch,
    ended,
    heard,
    lost,
    make_jobs,
    make_pool,
    make_vms,
    record,
    running_job,
)

DISPATCH = (WAKE_CHANNEL, "dispatch")


@pytest.fixture
def pool(engine: Engine) -> int:
    with engine.begin() as connection:
        made = make_pool(connection, slots_per_vm=1000)
        make_vms(connection, made)
        return made


@pytest.fixture
def listener(database_url: str, pool: int) -> Iterator[Listener]:
    """One that heard nothing of the making of the pool."""
    made = Listener(database_url, [WAKE_CHANNEL, DONE_CHANNEL, OUTPUT_CHANNEL])
    yield made
    made.close()


def _in(engine: Engine, work: Callable[[Connection], object]) -> Callable[[], None]:
    def run() -> None:
        with engine.begin() as connection:
            work(connection)

    return run


@pytest.mark.parametrize("whose", [("pool",), ("owner",), ("pool", "owner")])
def test_what_a_budget_stopped_is_woken_when_it_goes_on(
    engine: Engine, listener: Listener, pool: int, whose: tuple[str, ...]
) -> None:
    with engine.begin() as connection:
        owner = owner_id(connection, OWNER)
    of = {
        "pool_id": pool if "pool" in whose else None,
        "owner_id": owner if "owner" in whose else None,
    }

    def put(connection: Connection, stop: float) -> None:
        budgets.put(connection, **of, period="total", warn=None, stop=stop)

    def look(connection: Connection, *, reason: str | None) -> None:
        _, [budget] = budgets.to_check(connection)
        budgets.note(connection, budget, spent=1, level="stop", reason=reason, check_s=0)

    # Looked at at once when it is set.
    assert heard(listener, _in(engine, lambda c: put(c, 1))) == [(WAKE_CHANNEL, "budget")]
    stops = [(WAKE_CHANNEL, "lease")]
    assert heard(listener, _in(engine, lambda c: look(c, reason="used up"))) == stops
    goes_on = {(WAKE_CHANNEL, kind) for kind in ("lease", "dispatch", "pool")}
    heard(listener, _in(engine, lambda c: put(c, 2)))
    assert set(heard(listener, _in(engine, lambda c: look(c, reason=None)))) == goes_on
    heard(listener, _in(engine, lambda c: put(c, 1)))
    heard(listener, _in(engine, lambda c: look(c, reason="used up")))
    assert set(heard(listener, _in(engine, lambda c: budgets.remove(c, **of)))) == goes_on


def test_submit_wakes_the_dispatcher_once(engine: Engine, listener: Listener, pool: int) -> None:
    assert heard(listener, _in(engine, lambda c: make_jobs(c, pool, 500))) == [DISPATCH]


def test_nothing_is_heard_of_what_is_rolled_back(
    engine: Engine, listener: Listener, pool: int
) -> None:
    def roll_back() -> None:
        with engine.connect() as connection:
            make_jobs(connection, pool, 5)
            connection.rollback()

    assert heard(listener, roll_back) == []


def test_placing_and_starting_are_silent(engine: Engine, listener: Listener, pool: int) -> None:
    with engine.begin() as connection:
        make_jobs(connection, pool, 3)
    assert heard(listener, _in(engine, dispatch)) == [DISPATCH]  # of the submit before
    with engine.begin() as connection:
        make_jobs(connection, pool, 1)
    heard(listener, lambda: None)
    assert heard(listener, _in(engine, dispatch)) == []


def test_ended_jobs_are_told_in_chunks_that_fit(
    engine: Engine, listener: Listener, pool: int
) -> None:
    with engine.begin() as connection:
        # Ids as long as they get.
        connection.execute(text("ALTER SEQUENCE jobs_id_seq RESTART WITH 9223372036854770000"))
        jobs = make_jobs(connection, pool, 1000)
        placed = dispatch(connection)
    heard(listener, lambda: None)
    outcomes = [ended(p.attempt_id) for p in placed]
    found = heard(listener, _in(engine, lambda c: record(c, placed[0].vm_id, *outcomes)))
    assert {channel for channel, _ in found} == {DONE_CHANNEL}
    assert all(len(payload) < 8000 for _, payload in found)
    assert len(found) == 3
    told = [int(word) for _, payload in found for word in payload.split(",")]
    assert sorted(told) == jobs


def test_a_job_that_runs_again_wakes_the_dispatcher(
    engine: Engine, listener: Listener, pool: int
) -> None:
    with engine.begin() as connection:
        _, placed = running_job(connection, pool)
    heard(listener, lambda: None)
    found = heard(listener, _in(engine, lambda c: record(c, placed.vm_id, lost(placed.attempt_id))))
    assert found == [DISPATCH]


def test_terminating_is_not_done(engine: Engine, listener: Listener, pool: int) -> None:
    with engine.begin() as connection:
        _, placed = running_job(connection, pool)
    heard(listener, lambda: None)
    outcome = ended(placed.attempt_id, state="EXITED", job_state="TERMINATING")
    assert heard(listener, _in(engine, lambda c: record(c, placed.vm_id, outcome))) == []


def test_cancel(engine: Engine, listener: Listener, pool: int) -> None:
    with engine.begin() as connection:
        job, _ = running_job(connection, pool)
        [waiting] = make_jobs(connection, pool)
    heard(listener, lambda: None)
    found = heard(listener, _in(engine, lambda c: cancel.request_cancel(c, [waiting])))
    assert found == [(DONE_CHANNEL, str(waiting))]  # nothing to kill
    found = heard(listener, _in(engine, lambda c: cancel.request_cancel(c, [job])))
    assert found == [(WAKE_CHANNEL, "cancel")]
    assert heard(listener, _in(engine, lambda c: cancel.request_cancel(c, [job]))) == []


def test_follow(engine: Engine, listener: Listener, pool: int) -> None:
    with engine.begin() as connection:
        job, placed = running_job(connection, pool)
    heard(listener, lambda: None)
    found = heard(listener, _in(engine, lambda c: requests.follow_job(c, job)))
    assert found == [(WAKE_CHANNEL, "follow")]
    chunks = [
        {"attempt_id": placed.attempt_id, "stream": "stdout", "at_byte": n, "data": b"\0\xff"}
        for n in (0, 2)
    ]
    found = heard(listener, _in(engine, lambda c: cancel.insert_chunks(c, chunks)))
    assert found == [(OUTPUT_CHANNEL, str(job))]


def test_output_of_an_unknown_attempt_is_dropped(
    engine: Engine, listener: Listener, pool: int
) -> None:
    chunk = {"attempt_id": 12345, "stream": "stdout", "at_byte": 0, "data": b"x"}
    assert heard(listener, _in(engine, lambda c: cancel.insert_chunks(c, [chunk]))) == []


def test_vms_that_come_and_go(engine: Engine, listener: Listener, pool: int) -> None:
    with engine.begin() as connection:
        [vm] = make_vms(connection, pool, state=VmState.SUBMITTED)
    heard(listener, lambda: None)
    found = heard(
        listener,
        _in(engine, lambda c: move_vm(c, vm, VmState.RUNNING, allowed=[VmState.SUBMITTED])),
    )
    assert found == [DISPATCH]
    found = heard(listener, _in(engine, lambda c: move_vm(c, vm, VmState.STOPPING)))
    assert found == [(WAKE_CHANNEL, "vm")]


def test_pools_that_change(engine: Engine, listener: Listener, pool: int) -> None:
    wake = [(WAKE_CHANNEL, "pool")]
    assert (
        heard(listener, _in(engine, lambda c: change_pool(c, pool, {"instance_count": 4}))) == wake
    )
    assert heard(listener, _in(engine, lambda c: change_pool(c, pool, {}))) == []

    def size(connection: Connection) -> None:
        [demand] = due_pools(connection)
        store_state(connection, demand, PoolState.FULLY_EXECUTING)

    assert heard(listener, _in(engine, size)) == wake
    assert heard(listener, _in(engine, size)) == []  # nothing changed
    assert heard(listener, _in(engine, lambda c: close_pool(c, pool))) == wake


def test_a_lease_that_ends_makes_room(engine: Engine, listener: Listener, pool: int) -> None:
    with engine.begin() as connection:
        lease = leases.acquire(
            connection,
            pool_ids=[pool],
            owner=OWNER,
            sandbox="",
            slots=1,
            ttl_s=60,
        )
    assert lease is not None
    found = heard(listener, _in(engine, lambda c: leases.release(c, lease["id"], lease["token"])))
    assert found == [DISPATCH]
    assert heard(listener, _in(engine, leases.expire)) == []


def test_a_lost_listener_says_so(engine: Engine, database_url: str) -> None:
    listener = Listener(database_url, [WAKE_CHANNEL])
    with engine.begin() as connection:
        connection.execute(
            text(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name = 'remuda listener' AND datname = current_database()"""
            )
        )
    with pytest.raises(DatabaseUnavailable):
        listener.wait(10.0)
    with pytest.raises(DatabaseUnavailable):
        Listener("postgresql://nobody@127.0.0.1:1/nothing", [WAKE_CHANNEL])
