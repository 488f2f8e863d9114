"""What was, over time: buckets against a count by hand, and each metric against rows made for it."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from remuda.errors import BadInput, UnknownPool
from remuda.models import history, history_sources
from remuda.models.history import Period, values_of
from tests.integration.builders import ended, make_jobs, make_pool, make_vms, record, running_job
from tests.integration.workbench import Workbench

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECONDS = 60

pieces = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.integers(-20, SECONDS + 20),
        st.none() | st.integers(-20, SECONDS + 20),
        st.integers(1, 3),
    ),
    max_size=12,
)


@given(found=pieces, bucket=st.integers(1, 70), cut=st.integers(1, SECONDS))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_levels_are_what_a_count_each_second_says(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, found: Any, bucket: int, cut: int
) -> None:
    rows = [
        f"('{key}', TIMESTAMPTZ '{START + timedelta(seconds=began)}', "
        + (f"TIMESTAMPTZ '{START + timedelta(seconds=over)}'" if over is not None else "NULL")
        + f", {weight})"
        for key, began, over, weight in found
    ]
    rows.append("('a', NULL::timestamptz, NULL::timestamptz, 1)")  # never began
    source = f"SELECT * FROM (VALUES {', '.join(rows)}) AS v(key, began, ended, weight)"
    monkeypatch.setitem(history_sources.SOURCES, "running_vms", lambda _: source)
    count = math.ceil(cut / bucket)
    period = Period(START, START + timedelta(seconds=cut), bucket, count)
    with engine.connect() as connection:
        told = values_of(connection, "running_vms", period, by="pool")
    for key in "ab":
        levels = [
            sum(
                weight
                for k, began, over, weight in found
                if k == key and began <= second and (over is None or second < over)
            )
            for second in range(cut)
        ]
        there = told.get(key, {"avg": [0.0] * count, "max": [0.0] * count})
        for n in range(count):
            inside = levels[n * bucket : (n + 1) * bucket]
            assert there["avg"][n] == pytest.approx(sum(inside) / len(inside))
            assert there["max"][n] == max(inside)


def _at(connection: Connection, table: str, column: str, at_s: float, where: str) -> None:
    connection.execute(
        text(f"UPDATE {table} SET {column} = :at WHERE {where}"),
        {"at": START + timedelta(seconds=at_s)},
    )


def _beat(connection: Connection, vm: int, at_s: float, **fields: Any) -> None:
    given = {"load": 1.0, "running_jobs": 0, "memory_free_bytes": 1, "disk_free_bytes": 1}
    given |= {"uptime_s": 1.0, **fields}
    names = ", ".join(given)
    values = ", ".join(f":{name}" for name in given)
    connection.execute(
        text(f"INSERT INTO heartbeats (vm_id, at, {names}) VALUES (:vm, :at, {values})"),
        {"vm": vm, "at": START + timedelta(seconds=at_s), **given},
    )


def _vm_life(connection: Connection, vm: int, *, running_s: float, halted_s: float | None) -> None:
    """Have the VM asked for at 0 s, RUNNING and HALTED when told."""
    here = f"kind = 'vm' AND subject_id = {vm}"
    _at(connection, "vms", "created_at", 0, f"id = {vm}")
    _at(connection, "vms", "submitted_at", 0, f"id = {vm}")
    _at(connection, "events", "at", 0, f"{here} AND to_state <> 'RUNNING'")
    _at(connection, "events", "at", running_s, f"{here} AND to_state = 'RUNNING'")
    if halted_s is not None:
        connection.execute(text(f"UPDATE vms SET state = 'STOPPING' WHERE id = {vm}"))
        connection.execute(
            text(f"UPDATE vms SET state = 'HALTED', halted_at = now() WHERE id = {vm}")
        )
        _at(connection, "vms", "halted_at", halted_s, f"id = {vm}")
        _at(connection, "events", "at", halted_s, f"{here} AND to_state IN ('STOPPING', 'HALTED')")


def test_each_metric(bench: Workbench) -> None:
    with bench.engine.begin() as connection:
        a, b = make_pool(connection, "a"), make_pool(connection, "b")
        [vm] = make_vms(connection, a)
        job, placed = running_job(connection, a)
        record(connection, vm, ended(placed.attempt_id))
        [other] = make_vms(connection, b)
        [waits] = make_jobs(connection, b, owner="bob", cores=1)
        for one in (vm, other):
            halted = 90 if one == vm else None
            _vm_life(connection, one, running_s=30, halted_s=halted)
        connection.execute(text("UPDATE vms SET price = 60"))
        _at(connection, "jobs", "submitted_at", 10, f"id = {job}")
        _at(connection, "jobs", "ended_at", 80, f"id = {job}")
        _at(connection, "attempts", "started_at", 40, "true")
        _at(connection, "attempts", "ended_at", 70, "true")
        connection.execute(text("UPDATE attempts SET wall_s = 30"))
        _at(connection, "jobs", "submitted_at", 65, f"id = {waits}")
        for at_s, load, moved in ((20, 1, 100), (50, 3, 250), (70, 5, 20), (80, 7, 50)):
            _beat(connection, vm, at_s, load=load, transferred_bytes=moved)
        _beat(connection, other, 119, load=9, transferred_bytes=7)

    with bench.client() as client:

        def ask(metric: str, by: str | None = None, **more: Any) -> Any:
            period = {"since": START, "until": START + timedelta(seconds=120), "bucket_s": 60}
            return client.history(metric, by=by, **{**period, **more}).series

        assert ask("running_vms") == {"": {"avg": [1.0, 1.5], "max": [2.0, 2.0]}}
        assert ask("running_vms", "pool") == {
            "a": {"avg": [0.5, 0.5], "max": [1.0, 1.0]},
            "b": {"avg": [0.5, 1.0], "max": [1.0, 1.0]},
        }
        assert ask("running_vms", pool="a") == {"": ask("running_vms", "pool")["a"]}
        for by, key in (("image", "default"), ("provider", "local"), ("owner", "alice")):
            assert ask("running_vms", by) == {key: ask("running_vms")[""]}
        assert ask("vms", "state")["RUNNING"] == ask("running_vms")[""]
        assert ask("vms")[""]["avg"] == [2.0, 1.5]
        assert ask("slots")[""]["avg"] == [2.0, 3.0]
        assert ask("busy_slots")[""]["avg"] == pytest.approx([20 / 60, 10 / 60])
        assert ask("utilisation")[""]["avg"] == pytest.approx([1 / 6, 1 / 18])
        assert ask("utilisation", "pool")["b"]["avg"] == [0.0, 0.0]
        assert ask("running_jobs", "pool")["a"]["max"] == [1.0, 1.0]
        assert ask("waiting_jobs", "owner") == {
            "alice": {"avg": [0.5, 0.0], "max": [1.0, 0.0]},
            "bob": {"avg": [0.0, pytest.approx(55 / 60)], "max": [0.0, 1.0]},
        }
        assert ask("submitted_jobs")[""]["sum"] == [1.0, 1.0]
        assert ask("started_jobs")[""]["sum"] == [1.0, 0.0]
        assert ask("ended_jobs", "reason") == {"OK": {"sum": [0.0, 1.0]}}
        assert ask("wait_s")[""] == {
            "p50": [30.0, None], "p90": [30.0, None], "p99": [30.0, None], "count": [1.0, 0.0],
        }  # fmt: skip
        assert ask("run_s", "pool")["a"]["p50"] == [None, 30.0]
        assert ask("load", "pool")["a"] == {"avg": [2.0, 6.0], "min": [1, 5], "max": [3, 7]}
        assert ask("memory_free")[""]["min"] == ask("disk_free")[""]["min"] == [1, 1]
        # The first beat counts whole, for the VM is no older; at 70 s its counter began anew.
        assert ask("transferred_bytes", "pool")["a"] == {"sum": [250.0, 50.0]}
        assert ask("transferred_bytes", since=START + timedelta(seconds=60))[""]["sum"] == [57.0]
        assert ask("transferred_files")[""]["sum"] == [0.0, 0.0]
        assert ask("cost")[""]["sum"] == pytest.approx([2.0, 1.5])  # 60 an hour is 1 a minute
        assert ask("leased_slots")[""] == {"avg": [0.0, 0.0], "max": [0.0, 0.0]}


def test_a_vm_whose_events_are_past_their_retention(bench: Workbench) -> None:
    bench.pool()
    with bench.engine.begin() as connection:
        connection.execute(text("DELETE FROM events"))
        connection.execute(
            text("UPDATE vms SET created_at = :at, state_changed_at = :at"), {"at": START}
        )
    with bench.client() as client:
        found = client.history(since=START + HOUR, until=START + 2 * HOUR, bucket_s=3600)
        assert found.series == {"": {"avg": [1.0], "max": [1.0]}}


def test_buckets_begin_at_round_times_and_end_now(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        found = client.history("vms", by="pool", since=timedelta(hours=2))
        assert (found.bucket_s, len(found.times)) == (60, 121)
        assert {time.second for time in found.times} == {0}
        assert found.times[-1] <= datetime.now(UTC) < found.times[-1] + timedelta(seconds=61)
        # Of two, if a minute ended since the VM was made.
        assert found.series["herd"]["max"] in ([0.0] * 120 + [1.0], [0.0] * 119 + [1.0] * 2)
        rows = list(found.rows())
        assert rows[-1] == {
            "time": found.times[-1],
            "pool": "herd",
            "avg": found.series["herd"]["avg"][-1],
            "max": 1.0,
        }
        offset = client.history(since=START + timedelta(seconds=59), until=START + HOUR)
        assert offset.times[0] == START + timedelta(seconds=30)
        daily = client.history(since=START, until=START + HOUR, bucket_s=86400)
        assert daily.times == [START.replace(hour=0)]


def test_histories_that_cannot_be(bench: Workbench) -> None:
    bench.pool()
    now = datetime.now(UTC)
    bad: list[dict[str, Any]] = [
        {"metric": "nothing"},
        {"metric": "x" * 10_000_000},
        {"metric": "a\0"},
        {"metric": 7},
        {"metric": "waiting_jobs", "by": "image"},
        {"by": "state"},
        {"by": "x" * 10_000_000},
        {"by": 7},
        {"bucket_s": 0},
        {"bucket_s": -60},
        {"bucket_s": 0.5},
        {"bucket_s": 1.5},
        {"bucket_s": True},
        {"bucket_s": "60"},
        {"bucket_s": 10**12},
        {"bucket_s": 1, "since": timedelta(days=30)},
        {"since": now + timedelta(seconds=60)},
        {"since": timedelta(seconds=-1)},
        {"since": timedelta(0)},
        {"since": timedelta(days=999_999_999)},
        {"since": now.replace(tzinfo=None)},
        {"since": "2h"},
        {"since": 3600},
        {"since": datetime(1, 1, 1, tzinfo=UTC)},
        {"until": timedelta(hours=2)},
        {"pool": 7},
    ]
    with bench.client() as client:
        for given in bad:
            with pytest.raises(BadInput) as refused:
                client.history(**given)
            assert len(str(refused.value)) < 1000, given
        with pytest.raises(UnknownPool):
            client.history(pool="nothing")


def test_every_metric_by_everything_on_an_empty_database(engine: Engine) -> None:
    period = Period(START, START + HOUR, 600, 6)
    with engine.connect() as connection:
        for name, metric in history.METRICS.items():
            for by in (None, *metric.by):
                found = values_of(connection, name, period, by=by, pool_ids=[1])
                assert list(found) == ([] if by else [""]), name
                for told in found.values():
                    assert list(told) == list(metric.values), name
                    assert {len(values) for values in told.values()} == {6}, name
