"""The database refuses every edge that is not drawn, whoever asks, and tells all that it takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from remuda.models.database import make_engine, rows
from remuda.models.states import (
    AttemptState,
    ImageState,
    JobState,
    PoolState,
    VmState,
    edges,
)
from remuda.models.tables.base import Base
from tests.database import _fresh
from tests.integration.builders import (
    BIRTH,
    TABLES,
    assert_chains,
    born,
    dispatch,
    ended,
    finish,
    lost,
    make_jobs,
    make_pool,
    make_vms,
    path,
    record,
    row,
    running_job,
    state,
)

STATES = {
    "job": JobState,
    "attempt": AttemptState,
    "vm": VmState,
    "image": ImageState,
    "pool": PoolState,
}
PAIRS = [(kind, str(a), str(b)) for kind, states in STATES.items() for a in states for b in states]
# One statement that is told as two steps; those that need a start are in a test of their own.
JUMPS = {("attempt", "STARTED", "COLLECTED"): ["EXITED", "COLLECTED"]}
# Columns that CHECKs tie to the state, so that only the triggers can refuse.
WITH_STATE = {
    "job": """, ended_at = CASE WHEN :new = 'TERMINATED' THEN now() END,
              reason = CASE WHEN :new = 'TERMINATED' THEN 'LOST' END""",
    "attempt": "",
    "vm": ", halted_at = CASE WHEN :new = 'HALTED' THEN now() END, provider_id = 'x'",
    "image": "",
    "pool": ", ended_at = CASE WHEN :new IN ('CLOSED', 'PENDING_DELETE') THEN now() END",
}


@pytest.fixture(scope="module")
def shared(server_url: str, template: str) -> Iterator[Engine]:
    """One database for the whole module; each test rolls its transaction back."""
    with contextmanager(_fresh)(server_url, template) as url:
        made = make_engine(url)
        yield made
        made.dispose()


@pytest.fixture
def connection(shared: Engine) -> Iterator[Connection]:
    with shared.connect() as made:
        yield made
        made.rollback()


def _move(connection: Connection, kind: str, key: int, new: str) -> None:
    connection.execute(
        text(
            f"UPDATE {TABLES[kind]} SET state = CAST(:new AS text){WITH_STATE[kind]} WHERE id = :id"
        ),
        {"id": key, "new": new},
    )


def _way(kind: str, target: str) -> list[str]:
    """Return the shortest way from birth to a state."""
    ways = {BIRTH[kind]: [BIRTH[kind]]}
    todo = deque(ways)
    while todo:
        here = todo.popleft()
        for k, old, new in edges():
            if k == kind and old == here and new not in ways:
                ways[new] = [*ways[here], new]
                todo.append(new)
    return ways[target]


@pytest.mark.parametrize(("kind", "old", "new"), PAIRS)
def test_every_pair_of_states(connection: Connection, kind: str, old: str, new: str) -> None:
    key = born(connection, kind)
    way = _way(kind, old)
    for step in way[1:]:
        _move(connection, kind, key, step)
    assert path(connection, kind, key).split() == way
    before = row(connection, TABLES[kind], key)
    if old == new:
        _move(connection, kind, key, new)
        assert path(connection, kind, key).split() == way  # no transition, no event
    elif (kind, old, new) in edges() or (kind, old, new) in JUMPS:
        _move(connection, kind, key, new)
        assert path(connection, kind, key).split() == [*way, *JUMPS.get((kind, old, new), [new])]
        assert state(connection, kind, key) == new
    else:
        refused = connection.begin_nested()
        with pytest.raises(IntegrityError, match=f"{kind} {key} cannot go from {old} to "):
            _move(connection, kind, key, new)
        refused.rollback()
        assert row(connection, TABLES[kind], key) == before
        assert path(connection, kind, key).split() == way


@pytest.mark.parametrize(
    ("kind", "born_as"),
    [(k, str(s)) for k, states in STATES.items() for s in states if s != BIRTH[k]],
)
def test_nothing_is_born_grown_up(connection: Connection, kind: str, born_as: str) -> None:
    key = born(connection, kind)
    columns = [c.name for c in Base.metadata.tables[TABLES[kind]].columns if c.computed is None]
    fresh = {
        "id": "id + 1000",
        "state": ":new",
        "name": "name || '2'" if kind != "job" else "name",
        "token": "gen_random_uuid()",
        "uuid": "gen_random_uuid()",
        "epoch": "epoch + 1",
        "job_id": "job_id",
        "provider_id": "'x'",
        "halted_at": "CASE WHEN :new = 'HALTED' THEN now() END",
        "ended_at": "CASE WHEN :new IN ('TERMINATED', 'CLOSED', 'PENDING_DELETE') THEN now() END",
        "reason": "CASE WHEN :new = 'TERMINATED' THEN 'OK' END",
    }
    if kind == "attempt":
        connection.execute(text("UPDATE attempts SET state = 'LOST'"))
    values = ", ".join(fresh.get(name, name) for name in columns)
    with pytest.raises(IntegrityError, match=f"an? {kind} starts as {BIRTH[kind]}"):
        connection.execute(
            text(
                f"""INSERT INTO {TABLES[kind]} ({", ".join(columns)}) OVERRIDING SYSTEM VALUE
                    SELECT {values} FROM {TABLES[kind]} WHERE id = :id""".replace(
                    ":new", "CAST(:new AS text)"
                )
            ),
            {"id": key, "new": born_as},
        )


def test_one_bad_row_refuses_the_whole_statement(connection: Connection) -> None:
    jobs = make_jobs(connection, make_pool(connection), 3)
    _move(connection, "job", jobs[0], "TERMINATED")
    refused = connection.begin_nested()
    with pytest.raises(IntegrityError, match="cannot go from TERMINATED to SUBMITTED"):
        connection.execute(
            text("UPDATE jobs SET state = 'SUBMITTED', ended_at = NULL, reason = NULL")
        )
    refused.rollback()
    assert [state(connection, "job", job) for job in jobs] == ["TERMINATED", "NEW", "NEW"]
    assert_chains(connection)


@pytest.mark.parametrize(
    ("outcome", "job_path", "attempt_path"),
    [
        (
            {},
            "NEW SUBMITTED RUNNING TERMINATING TERMINATED",
            "PLACED STARTED EXITED COLLECTED",
        ),
        (
            {"exit_code": 3, "reason": "NONZERO"},
            "NEW SUBMITTED RUNNING TERMINATING TERMINATED",
            "PLACED STARTED EXITED COLLECTED",
        ),
        (
            {"exit_code": None, "signal": 9, "reason": "SIGNALLED"},
            "NEW SUBMITTED RUNNING TERMINATING TERMINATED",
            "PLACED STARTED EXITED COLLECTED",
        ),
        (  # the command was not found: an exit code, but no start
            {"exit_code": 127, "reason": "NONZERO", "started_age_s": None},
            "NEW SUBMITTED RUNNING TERMINATING TERMINATED",
            "PLACED STARTED EXITED COLLECTED",
        ),
        (
            {"exit_code": 3, "reason": "NONZERO", "job_state": "NEW", "failure": True},
            "NEW SUBMITTED NEW",
            "PLACED STARTED EXITED COLLECTED",
        ),
        (
            {"state": "EXITED", "job_state": "TERMINATING"},
            "NEW SUBMITTED RUNNING TERMINATING",
            "PLACED STARTED EXITED",
        ),
        (
            {"state": "FAILED", "reason": "STAGING", "exit_code": None, "started_age_s": None},
            "NEW SUBMITTED TERMINATED",
            "PLACED FAILED",
        ),
        (
            {"state": "CANCELLED", "reason": "CANCELLED", "exit_code": None, "signal": 15},
            "NEW SUBMITTED RUNNING TERMINATING TERMINATED",
            "PLACED STARTED CANCELLED",
        ),
        (
            {"state": "LOST", "reason": "LOST", "exit_code": None},
            "NEW SUBMITTED RUNNING TERMINATED",
            "PLACED STARTED LOST",
        ),
    ],
)
def test_a_jump_is_told_step_by_step(
    connection: Connection, outcome: dict[str, object], job_path: str, attempt_path: str
) -> None:
    pool = make_pool(connection)
    make_vms(connection, pool)
    [job] = make_jobs(connection, pool)
    [placed] = dispatch(connection)
    assert record(connection, placed.vm_id, ended(placed.attempt_id, **outcome)) == {
        placed.attempt_id
    }
    assert path(connection, "job", job) == job_path
    assert path(connection, "attempt", placed.attempt_id) == attempt_path
    assert_chains(connection)


def test_started_jobs_take_no_shortcut_twice(connection: Connection) -> None:
    pool = make_pool(connection)
    make_vms(connection, pool)
    job, placed = running_job(connection, pool)
    record(connection, placed.vm_id, ended(placed.attempt_id))
    assert path(connection, "job", job) == "NEW SUBMITTED RUNNING TERMINATING TERMINATED"
    assert path(connection, "attempt", placed.attempt_id) == "PLACED STARTED EXITED COLLECTED"


def test_a_long_life_has_one_chain(connection: Connection) -> None:
    pool = make_pool(connection)
    make_vms(connection, pool)
    job, first = running_job(connection, pool, max_attempts=3)
    record(connection, first.vm_id, lost(first.attempt_id))
    [second] = dispatch(connection)
    record(
        connection,
        second.vm_id,
        ended(second.attempt_id, state="EXITED", job_state="TERMINATING"),
    )
    finish(
        connection,
        second.vm_id,
        ended(second.attempt_id, state="FAILED", job_state="NEW", reason="STAGING", failure=True),
    )
    [third] = dispatch(connection)
    record(connection, third.vm_id, ended(third.attempt_id))
    assert path(connection, "job", job) == (
        "NEW SUBMITTED RUNNING NEW SUBMITTED RUNNING TERMINATING NEW SUBMITTED RUNNING TERMINATING"
        " TERMINATED"
    )
    found = row(connection, "jobs", job)
    assert (found["epoch"], found["failures"], found["losses"]) == (3, 1, 1)
    assert_chains(connection)


def test_the_reason_is_told_with_the_last_step(connection: Connection) -> None:
    pool = make_pool(connection)
    make_vms(connection, pool)
    job, placed = running_job(connection, pool)
    record(connection, placed.vm_id, ended(placed.attempt_id, exit_code=2, reason="NONZERO"))
    events = rows(
        connection,
        "SELECT to_state, detail FROM events WHERE kind = 'job' AND subject_id = :id ORDER BY id",
        id=job,
    )
    assert events[-1]["detail"] == {"reason": "NONZERO"}
    assert events[0]["detail"] is None


def test_events_of_a_batch_keep_each_chain_in_order(connection: Connection) -> None:
    pool = make_pool(connection, slots_per_vm=300)
    [vm] = make_vms(connection, pool)
    make_jobs(connection, pool, 300)
    placed = dispatch(connection)
    assert len(placed) == 300
    assert [p.attempt_id for p in placed] == sorted(p.attempt_id for p in placed)
    record(connection, vm, *[ended(p.attempt_id) for p in placed])
    assert_chains(connection)
    numbers = [e["id"] for e in rows(connection, "SELECT id FROM events ORDER BY id")]
    assert all(a < b for a, b in pairwise(numbers))


def test_a_rolled_back_transaction_leaves_no_event(shared: Engine) -> None:
    with shared.connect() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        running_job(connection, pool)
        assert connection.scalar(text("SELECT count(*) FROM events")) > 0
        connection.rollback()
        assert connection.scalar(text("SELECT count(*) FROM events")) == 0
        assert connection.scalar(text("SELECT count(*) FROM jobs")) == 0
        assert connection.scalar(text("SELECT count(*) FROM owners")) == 0
