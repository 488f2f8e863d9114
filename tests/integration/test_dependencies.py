"""Jobs that wait for jobs and arrays: settled in the transaction in which these end."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from remuda import After, BadInput, Client, JobSpec, Refused, UnknownArray, UnknownJob
from remuda.dependencies import Edge
from remuda.models.database import WAKE_CHANNEL, Listener, rows
from remuda.models.dependencies import insert_dependencies, reconcile
from remuda.models.submit import NewJob, NewSpec, insert_jobs, owner_id
from tests.integration.builders import (
    OWNER,
    assert_chains,
    heard,
    make_jobs,
    make_pool,
    path,
    row,
    wait_for_a_lock,
)
from tests.integration.workbench import Workbench
from tests.invariants import DEPENDENCIES


def _end(connection: Connection, ids: Sequence[int], reason: str = "OK", **more: Any) -> None:
    """End jobs, whatever state they are in, as one statement of a worker would."""
    given = {"exit_code": None, "ids": list(ids), "reason": reason, **more}
    connection.execute(
        text(
            """UPDATE jobs SET state = 'TERMINATED', reason = :reason, ended_at = now(),
                 exit_code = :exit_code WHERE id = ANY(:ids) AND state <> 'TERMINATED'"""
        ),
        given,
    )


def _child(connection: Connection, pool: int, *parents: int, **edge: Any) -> int:
    """Insert a job that waits for `parents`."""
    owner = owner_id(connection, OWNER)
    [job] = insert_jobs(
        connection,
        [NewSpec(command=["true"])],
        [NewJob(spec=0, unmet=len(parents))],
        pool_id=pool,
        owner=owner,
    )
    edges = [Edge(0, **{"condition": "success", **edge}, parent_id=parent) for parent in parents]
    insert_dependencies(connection, edges, [job], lock=True)
    return job


def _told(connection: Connection, job: int) -> tuple[str, str | None, int]:
    found = row(connection, "jobs", job)
    return found["state"], found["reason"], found["unmet"]


def assert_settled(connection: Connection) -> None:
    assert_chains(connection)
    for what, query in DEPENDENCIES.items():
        assert not rows(connection, query), what


@pytest.mark.parametrize("ending", ["OK", "NONZERO", "CANCELLED"])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("condition", ["success", "failure", "end"])
def test_a_child_goes_or_ends_with_its_parent(
    engine: Engine, condition: str, early: bool, ending: str
) -> None:
    """Whether the parent ends before the submit or after it makes no difference."""
    with engine.begin() as connection:
        pool = make_pool(connection)
        [parent] = make_jobs(connection, pool, name="prep")
        if early:
            _end(connection, [parent], ending, exit_code=3 if ending == "NONZERO" else None)
        child = _child(connection, pool, parent, condition=condition)
        if not early:
            assert _told(connection, child) == ("NEW", None, 1)
            _end(connection, [parent], ending, exit_code=3 if ending == "NONZERO" else None)
        if condition == "end" or (condition == "success") == (ending == "OK"):
            assert _told(connection, child) == ("NEW", None, 0)
        else:
            assert _told(connection, child) == ("TERMINATED", "DEPENDENCY", 1)
            assert path(connection, "job", child) == "NEW TERMINATED"
            how = " (exit code 3)" if ending == "NONZERO" else ""
            said = row(connection, "jobs", child)["message"]
            assert said == f"job {parent} 'prep' ended {ending}{how}"
        assert_settled(connection)


def test_ready_jobs_wake_the_dispatcher(engine: Engine, database_url: str) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        first, second = make_jobs(connection, pool, 2)
        _child(connection, pool, first, second)
    listener = Listener(database_url, [WAKE_CHANNEL])

    def end(job: int) -> None:
        with engine.begin() as connection:
            _end(connection, [job])

    assert (WAKE_CHANNEL, "dispatch") not in heard(listener, lambda: end(first))
    assert (WAKE_CHANNEL, "dispatch") in heard(listener, lambda: end(second))
    listener.close()


_OUTCOMES = st.sampled_from(["OK", "OK", "OK", "NONZERO", "CANCELLED"])
_EDGES = st.tuples(st.integers(1, 12), st.sampled_from(["success", "failure", "end"]))


def _model(edges: list[list[tuple[int, str]]], outcomes: list[str]) -> list[str]:
    """Return how each job of a DAG ends: it runs, with its outcome, if all its edges are met."""
    ends: list[str] = []
    for job, outcome in enumerate(outcomes):
        met = all(
            condition == "end" or (condition == "success") == (ends[parent] == "OK")
            for parent, condition in edges[job]
        )
        ends.append(outcome if met else "DEPENDENCY")
    return ends


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.tuples(st.lists(_EDGES, max_size=3), _OUTCOMES), min_size=1, max_size=25),
    batch=st.integers(1, 4),
)
def test_random_dags_end_as_the_model_says(
    engine: Engine, shape: list[tuple[list[tuple[int, str]], str]], batch: int
) -> None:
    edges = [
        [(job - back, condition) for back, condition in afters if back <= job]
        for job, (afters, _) in enumerate(shape)
    ]
    outcomes = [outcome for _, outcome in shape]
    with engine.begin() as connection:
        pool = make_pool(connection, f"p{time.monotonic_ns()}")
        ids = insert_jobs(
            connection,
            [NewSpec(command=["true"])],
            [NewJob(spec=0, unmet=len(afters)) for afters in edges],
            pool_id=pool,
            owner=owner_id(connection, OWNER),
        )
        found = [Edge(j, c, place=p) for j, afters in enumerate(edges) for p, c in afters]
        if found:
            insert_dependencies(connection, found, ids, lock=True)
        for _ in range(len(ids)):
            ready = rows(
                connection,
                """SELECT id FROM jobs WHERE pool_id = :pool AND state = 'NEW' AND unmet = 0
                   ORDER BY id DESC LIMIT :batch""",
                pool=pool,
                batch=batch,
            )
            for outcome in set(outcomes):
                _end(
                    connection,
                    [r["id"] for r in ready if outcomes[ids.index(r["id"])] == outcome],
                    outcome,
                )
        ended = rows(
            connection, "SELECT state, reason FROM jobs WHERE pool_id = :p ORDER BY id", p=pool
        )
        assert [r["reason"] for r in ended] == _model(edges, outcomes)
        assert_settled(connection)


@pytest.mark.parametrize(
    ("condition", "quantifier", "ends", "after_first", "after_all"),
    [
        ("success", "all", ["OK", "OK"], "waits", "goes"),
        ("success", "all", ["NONZERO", "OK"], "ends", "ends"),
        ("success", "any", ["OK", "NONZERO"], "goes", "goes"),
        ("success", "any", ["NONZERO", "NONZERO"], "waits", "ends"),
        ("failure", "all", ["OK", "NONZERO"], "ends", "ends"),
        ("failure", "all", ["NONZERO", "LOST"], "waits", "goes"),
        ("failure", "any", ["NONZERO", "OK"], "goes", "goes"),
        ("failure", "any", ["OK", "OK"], "waits", "ends"),
        ("end", "all", ["OK", "NONZERO"], "waits", "goes"),
        ("end", "any", ["NONZERO", "OK"], "goes", "goes"),
    ],
)
def test_an_array_is_waited_for(
    bench: Workbench,
    condition: str,
    quantifier: str,
    ends: list[str],
    after_first: str,
    after_all: str,
) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        parents = client.submit_array(JobSpec(["true"]), len(ends), pool="herd")
        spec = JobSpec(["true"], after=[After(client.array(parents[0]), condition, quantifier)])
        children = [client.submit(spec, pool="herd").id]
        for parent, reason, expected in zip(parents, ends, (after_first, after_all), strict=True):
            with bench.engine.begin() as connection:
                _end(connection, [parent.id], reason)
            children.append(client.submit(spec, pool="herd").id)  # late: settled at submit
            for child in children:
                with bench.engine.begin() as connection:
                    told = _told(connection, child)
                assert (
                    told
                    == {
                        "waits": ("NEW", None, 1),
                        "goes": ("NEW", None, 0),
                        "ends": ("TERMINATED", "DEPENDENCY", 1),
                    }[expected]
                )
    with bench.engine.begin() as connection:
        assert_settled(connection)


def test_index_by_index(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        parents = client.submit_array(JobSpec(["true"]), [3, 5, 8], pool="herd")
        array = client.array(parents[0])
        spec = JobSpec(["true"], after=[After(array, each=True)])
        children = client.submit_array(spec, [8, 3, 5], pool="herd")
        with bench.engine.begin() as connection:
            _end(connection, [parents[0].id])
            _end(connection, [parents[2].id], "NONZERO", exit_code=1)
            told = [_told(connection, job.id) for job in children]
            assert_settled(connection)
        assert told == [("TERMINATED", "DEPENDENCY", 1), ("NEW", None, 0), ("NEW", None, 1)]
        for wrong in ([3, 5], 3, ["a", "b", "c"]):
            with pytest.raises(BadInput, match="each"):
                client.submit_array(spec, wrong, pool="herd")
        with pytest.raises(BadInput, match="each"):
            client.submit(spec, pool="herd")


def test_what_cannot_be_waited_for(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client, Client(bench.settings, owner="bob") as bob:
        theirs = bob.submit(JobSpec(["true"]), pool="herd")
        for wrong, error, said in (
            (999, UnknownJob, "no job 999"),
            (theirs, Refused, "another owner"),
            ({"array": 999}, UnknownArray, "no array 999"),
        ):
            with pytest.raises(error, match=said):
                client.submit(JobSpec(["true"], after=wrong), pool="herd")
        assert client.counts("herd")["NEW"] == 1
        twins = [
            JobSpec(["true"], name=n, idempotency_key="k", after=a) for n, a in ("ab", ("b", ()))
        ]
        with pytest.raises(BadInput, match="waits for itself"):
            client.submit_many(twins, pool="herd")
        assert client.counts("herd")["NEW"] == 1


def test_a_key_found_again_gets_no_new_dependencies(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:

        def submit() -> list[int]:
            specs = [
                JobSpec(["true"], name="a", idempotency_key="a"),
                JobSpec(["true"], name="b", idempotency_key="b", after=["a"]),
            ]
            return [job.id for job in client.submit_many(specs, pool="herd")]

        first = submit()
        assert submit() == first
        again = JobSpec(["true"], after=first[1])
        client.submit(again, pool="herd")
    with bench.engine.begin() as connection:
        assert len(rows(connection, "SELECT * FROM dependencies")) == 2
        assert _told(connection, first[1]) == ("NEW", None, 1)
        assert_settled(connection)


def test_a_parent_that_ends_while_its_child_is_submitted(engine: Engine) -> None:
    """The one that comes second waits for the first, and sees what it did."""
    with engine.begin() as connection:
        pool = make_pool(connection)
        [parent] = make_jobs(connection, pool)
    children: list[int] = []

    def submit() -> None:
        with engine.begin() as connection:
            children.append(_child(connection, pool, parent))

    with engine.begin() as connection:
        _end(connection, [parent])
        thread = threading.Thread(target=submit)
        thread.start()
        wait_for_a_lock(engine)
    thread.join(timeout=20)
    with engine.begin() as connection:
        assert _told(connection, children[0]) == ("NEW", None, 0)
        [other] = make_jobs(connection, pool)

    def end() -> None:
        with engine.begin() as connection:
            _end(connection, [other], "NONZERO")

    with engine.begin() as connection:
        child = _child(connection, pool, other)
        thread = threading.Thread(target=end)
        thread.start()
        wait_for_a_lock(engine)
    thread.join(timeout=20)
    with engine.begin() as connection:
        assert _told(connection, child) == ("TERMINATED", "DEPENDENCY", 1)
        assert_settled(connection)


def test_the_sweep_finds_what_ended_during_a_producers_transaction(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        good, bad = client.submit_many([JobSpec(["true"]), JobSpec(["false"])], pool="herd")
        with bench.engine.begin() as theirs:
            goes = client.submit(JobSpec(["true"], after=good), pool="herd", session=theirs)
            ends = client.submit(JobSpec(["true"], after=bad), pool="herd", session=theirs)
            more = client.submit(JobSpec(["true"], after=ends), pool="herd", session=theirs)
            with bench.engine.begin() as worker:  # nothing holds it up
                _end(worker, [good.id])
                _end(worker, [bad.id], "NONZERO")
        with bench.engine.begin() as connection:
            assert _told(connection, goes.id) == ("NEW", None, 1)
            assert reconcile(connection) == 2
            assert _told(connection, goes.id) == ("NEW", None, 0)
            assert _told(connection, ends.id) == ("TERMINATED", "DEPENDENCY", 1)
            assert _told(connection, more.id) == ("TERMINATED", "DEPENDENCY", 1)
            assert reconcile(connection) == 0
            assert_settled(connection)


def test_two_parents_at_once(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        parents = make_jobs(connection, pool, 2)
        child = _child(connection, pool, *parents)

    def end() -> None:
        with engine.begin() as connection:
            _end(connection, parents[1:])

    with engine.begin() as connection:
        _end(connection, parents[:1])
        thread = threading.Thread(target=end)
        thread.start()
        wait_for_a_lock(engine)
    thread.join(timeout=20)
    with engine.begin() as connection:
        assert _told(connection, child) == ("NEW", None, 0)
        assert_settled(connection)
