"""Pools: their names, what can be set when, how they end; all or nothing."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.errors import AlreadyExists, BadInput, Refused, UnknownPool
from remuda.models import pool_deletion, pool_life, upkeep
from remuda.models.database import rows
from remuda.models.states import OPEN_POOL
from tests.integration.builders import (
    assert_chains,
    dispatch,
    ended,
    make_jobs,
    make_pool,
    make_vms,
    path,
    record,
    row,
    running_job,
    state,
    together,
)


def _count(connection: Connection, table: str) -> int:
    return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def _end(connection: Connection, pool: int) -> None:
    """Bring a CLOSING pool to CLOSED, as sizing does when its VMs are gone."""
    connection.execute(
        text("UPDATE pools SET state = 'CLOSED', ended_at = now() WHERE id = :id"), {"id": pool}
    )


def test_a_name_is_taken_until_the_pool_is_closed(engine: Engine) -> None:
    with engine.begin() as connection:
        first = make_pool(connection, "herd")
        with pytest.raises(AlreadyExists, match="herd"):
            make_pool(connection, "herd")
        pool_life.close_pool(connection, first)
        with pytest.raises(AlreadyExists):
            make_pool(connection, "herd")  # CLOSING
        _end(connection, first)
        assert pool_life.find_pool(connection, "herd")["id"] == first
        second = make_pool(connection, "herd")
        assert pool_life.find_pool(connection, "herd", lock=True)["id"] == second
        assert _count(connection, "pools") == 2
        assert_chains(connection)


def test_one_name_at_the_same_time(engine: Engine) -> None:
    def create() -> int | None:
        try:
            with engine.begin() as connection:
                return make_pool(connection, "herd")
        except AlreadyExists:
            return None

    found = together(*[create] * 5)
    assert len([pool for pool in found if pool is not None]) == 1


def test_the_first_pools_of_an_image_at_the_same_time(engine: Engine) -> None:
    def create(name: str) -> int:
        with engine.begin() as connection:
            return make_pool(connection, name)

    found = together(*[lambda n=n: create(f"p{n}") for n in range(5)])
    assert len(set(found)) == 5
    with engine.begin() as connection:
        assert _count(connection, "images") == 1


def test_an_unknown_pool_tells_the_known_ones(engine: Engine) -> None:
    with engine.begin() as connection:
        with pytest.raises(UnknownPool, match="none yet"):
            pool_life.find_pool(connection, "flock")
        make_pool(connection, "herd")
        with pytest.raises(UnknownPool, match="herd"):
            pool_life.find_pool(connection, "flock")
        for action in (pool_life.submit_pool, pool_life.close_pool):
            with pytest.raises(UnknownPool):
                action(connection, 12345)
        with pytest.raises(UnknownPool):
            pool_life.change_pool(connection, 12345, {"instance_count": 1})


@pytest.mark.parametrize(
    "fields",
    [
        {"slots_per_vm": 0},
        {"slots_per_vm": 10**12},
        {"slots_per_vm": "many"},
        {"instance_count": -1},
        {"instance_count": 10**9},
        {"memory_bytes_per_vm": -5},
        {"heartbeat_s": float("nan")},
        {"stalling_interval_s": float("inf")},
        {"elastic_minimum_slots": 5, "elastic_maximum_slots": 4},
        {"elastic_resize_factor": 0.0},
        {"isolation": "none"},
        {"colour": "red"},
        {"state": "CLOSED"},
    ],
)
def test_bad_settings_are_refused(engine: Engine, fields: dict[str, Any]) -> None:
    with engine.begin() as connection:
        with pytest.raises(BadInput):
            make_pool(connection, "bad", **fields)
        assert _count(connection, "pools") == 0
        pool = make_pool(connection, "good", submitted=False)
        before = row(connection, "pools", pool)
        with pytest.raises(BadInput):
            pool_life.change_pool(connection, pool, fields)
        assert row(connection, "pools", pool) == before


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 64, "ü", "a\0b", "-x", ".x"])
def test_bad_names_are_refused(engine: Engine, name: str) -> None:
    with engine.begin() as connection:
        with pytest.raises(BadInput):
            make_pool(connection, name)
        make_pool(connection, "good")  # the transaction goes on


def test_what_can_be_set_when(engine: Engine) -> None:
    late = {"slots_per_vm": 4, "settings": {"a": [1]}, "memory_bytes_per_vm": 1 << 30}
    with engine.begin() as connection:
        pool = make_pool(connection, submitted=False)
        pool_life.change_pool(connection, pool, {**late, "tags": ["x"]})
        found = row(connection, "pools", pool)
        assert {name: found[name] for name in late} == late
        assert found["tags"] == ["x"]
        pool_life.submit_pool(connection, pool)
        for name, value in late.items():
            with pytest.raises(Refused, match=name):
                pool_life.change_pool(connection, pool, {name: value, "instance_count": 3})
        assert row(connection, "pools", pool)["instance_count"] == 1
        pool_life.change_pool(connection, pool, {"instance_count": 3, "tags": []})
        changed = row(connection, "pools", pool)
        assert changed["instance_count"] == 3
        assert changed["updated_at"] > found["updated_at"]
        pool_life.change_pool(connection, pool, {})
        pool_life.close_pool(connection, pool)
        with pytest.raises(Refused, match="CLOSING"):
            pool_life.change_pool(connection, pool, {"instance_count": 3})


@pytest.mark.parametrize("here", [*OPEN_POOL, "FAILURE"])
def test_submitting_twice_is_harmless(engine: Engine, here: str) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        connection.execute(text("UPDATE pools SET state = :here"), {"here": str(here)})
        before = path(connection, "pool", pool)
        pool_life.submit_pool(connection, pool)
        assert path(connection, "pool", pool) == before


def test_a_closed_pool_is_not_submitted(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        pool_life.close_pool(connection, pool)
        with pytest.raises(Refused, match="CLOSING"):
            pool_life.submit_pool(connection, pool)
        assert state(connection, "pool", pool) == "CLOSING"


def test_close_cancels_what_waits_and_leaves_what_runs(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        job, placed = running_job(connection, pool)
        [waiting] = make_jobs(connection, pool)
        assert pool_life.close_pool(connection, pool) is True
        assert state(connection, "job", waiting) == "TERMINATED"
        assert row(connection, "jobs", waiting)["reason"] == "CANCELLED"
        assert row(connection, "jobs", job)["cancel_requested_at"] is None
        first = row(connection, "pools", pool)
        assert (first["state"], first["close_now"]) == ("CLOSING", False)
        assert first["previous_state_changed_at"] is not None
        assert pool_life.close_pool(connection, pool, now=True) is False
        again = row(connection, "pools", pool)
        assert again["close_now"] is True
        assert again["state_changed_at"] == first["state_changed_at"]
        assert row(connection, "jobs", job)["cancel_requested_at"] is not None
        record(connection, placed.vm_id, ended(placed.attempt_id))
        assert row(connection, "jobs", job)["reason"] == "OK"
        _end(connection, pool)
        assert pool_life.close_pool(connection, pool) is False
        assert_chains(connection)


def test_nothing_is_placed_in_a_closing_pool(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        make_vms(connection, pool)
        pool_life.close_pool(connection, pool)
        make_jobs(connection, pool)
        assert dispatch(connection) == []


def test_an_unsubmitted_pool_closes_at_once(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection, submitted=False)
        [job] = make_jobs(connection, pool)
        pool_life.close_pool(connection, pool)
        assert path(connection, "pool", pool) == "UNSUBMITTED CLOSED"
        assert row(connection, "pools", pool)["ended_at"] is not None
        assert state(connection, "job", job) == "TERMINATED"


def test_a_job_that_comes_as_its_pool_ends_does_not_wait_for_ever(engine: Engine) -> None:
    """The submit began before the close and commits after it."""
    with engine.begin() as connection:
        pool = make_pool(connection, submitted=False)
    with engine.connect() as late:
        [job] = make_jobs(late, pool)
        with engine.begin() as connection:
            pool_life.close_pool(connection, pool)
        late.commit()
    with engine.begin() as connection:
        assert state(connection, "job", job) == "NEW"
        upkeep.expire(connection, heartbeat_retention_s=60, event_retention_s=60)
        found = row(connection, "jobs", job)
        assert (found["state"], found["reason"]) == ("TERMINATED", "CANCELLED")
        assert "closed" in found["message"]
        assert_chains(connection)


def test_delete(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        with pytest.raises(Refused, match="SUBMITTED"):
            pool_deletion.delete_pool(connection, pool)
        pool_life.close_pool(connection, pool)
        with pytest.raises(Refused, match="CLOSING"):
            pool_deletion.delete_pool(connection, pool)
        _end(connection, pool)
        pool_deletion.delete_pool(connection, pool)
        pool_deletion.delete_pool(connection, pool)
        assert state(connection, "pool", pool) == "PENDING_DELETE"
        with pytest.raises(UnknownPool):
            pool_life.find_pool(connection, "herd")
        fresh = make_pool(connection, submitted=False)
        [job] = make_jobs(connection, fresh)
        with pytest.raises(Refused):
            pool_deletion.delete_pool(connection, fresh)
        assert state(connection, "job", job) == "NEW"
        assert_chains(connection)


def test_images_are_shared_by_name(engine: Engine) -> None:
    with engine.begin() as connection:
        for name in ("a", "b"):
            make_pool(connection, name)
        assert len(rows(connection, "SELECT DISTINCT image_id FROM pools")) == 1
        assert pool_life.image_id(connection, "local", "default") == 1
        assert pool_life.image_id(connection, "local", "other") != 1
