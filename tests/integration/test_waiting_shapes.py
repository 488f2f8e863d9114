"""Waiting work is counted by shape in the index: the same as if each job were looked at."""

from __future__ import annotations

import random
from typing import Any

from sqlalchemy import Connection, Engine, event, text

from remuda.models import sizing, waiting_shapes
from remuda.models.submit import NewJob, NewSpec, insert_jobs, owner_id
from tests.integration.builders import make_jobs, make_pool, make_vms

GIB = 1 << 30


def look(pool: int, **more: Any) -> waiting_shapes.Look:
    fields = {
        "slots": 4,
        "memory_bytes": 8 * GIB,
        "gpus": 1,
        "by_owner": False,
        "by_sandbox": False,
    }
    return waiting_shapes.Look(pool, **{**fields, **more})


def herd(connection: Connection, pools: list[int], *, seed: int) -> None:
    """Jobs of all kinds: some pause, are held, wait for others, may go to several pools."""
    chance = random.Random(seed)
    for pool in pools:
        for owner in ("alice", "bob", "carol"):
            for _ in range(chance.randrange(1, 5)):
                fields = {
                    "cores": chance.choice([1, 2, 8]),
                    "memory_bytes": chance.choice([None, GIB, 9 * GIB]),
                    "gpus": chance.choice([0, 0, 1]),
                    "constraints": chance.choice([None, {"ssd": True}]),
                    "sandbox": chance.choice(["", "a"]),
                }
                make_jobs(connection, pool, chance.randrange(1, 6), owner=owner, **fields)
    insert_jobs(
        connection,
        [NewSpec(command=["x"])],
        [NewJob(spec=0, cores=2)] * 3,
        pool_id=pools[0],
        pool_ids=pools,
        owner=owner_id(connection, "alice"),
    )
    for rest, change in enumerate(
        ("not_before = now() + interval '1 h'", "held = true", "unmet = 1"), start=1
    ):
        connection.execute(text(f"UPDATE jobs SET {change} WHERE id % 9 = :rest"), {"rest": rest})
    connection.execute(text("UPDATE jobs SET not_before = now() - interval '1 h' WHERE id % 7 = 0"))


def test_counting_is_as_looking_at_each(engine: Engine) -> None:
    several = 0
    for seed in range(8):
        with engine.connect() as connection:
            pools = [make_pool(connection, name) for name in "abc"]
            herd(connection, pools, seed=seed)
            alice, bob = [owner_id(connection, name) for name in ("alice", "bob")]
            looks = [
                look(pools[0]),
                look(pools[1], by_owner=True, by_sandbox=True, slots=8),
                look(pools[2], memory_bytes=None, gpus=0),
            ]
            some: dict[str, Any] = {"with_quota": [bob], "stopped": [alice] if seed % 2 else []}
            counted = waiting_shapes.waiting_shapes(connection, looks, limited=[], **some)
            # An array that is not there has everything looked at.
            each = waiting_shapes.waiting_shapes(connection, looks, limited=[10**9], **some)
            assert counted == each
            several += sum(row["count"] > 1 for found in counted.values() for row in found)
            for pool, found in counted.items():
                slots = sum(row["count"] * row["cores"] for row in found)
                assert {row["all_slots"] for row in found} <= {slots}
                assert {row["pool_id"] for row in found} <= {pool}
            connection.rollback()
    assert several > 8


def test_of_many_shapes_the_frequent_are_told_and_all_are_counted(engine: Engine) -> None:
    with engine.begin() as connection:
        pool = make_pool(connection)
        most = waiting_shapes.MOST_SHAPES
        for number in range(most + 20):
            make_jobs(connection, pool, 2 if number >= 20 else 1, memory_bytes=1000 + number)
        found = waiting_shapes.waiting_shapes(
            connection, [look(pool)], with_quota=[], limited=[], stopped=[]
        )[pool]
        assert [row["count"] for row in found] == [2] * most
        assert found[0]["all_slots"] == 2 * most + 20


def test_sizing_asks_no_more_for_more_pools(engine: Engine) -> None:
    seen: list[str] = []

    def asked(connection: Connection) -> int:
        seen.clear()
        sizing.due_pools(connection)
        return len(seen)

    with engine.begin() as connection:
        event.listen(connection, "before_cursor_execute", lambda *call: seen.append(call[2]))
        for number in range(6):
            pool = make_pool(connection, f"p{number}", is_elastic=True, elastic_maximum_slots=9)
            make_vms(connection, pool, 2)
            make_jobs(connection, pool, 3)
            if number == 0:
                few = asked(connection)
        assert 5 < few == asked(connection)
