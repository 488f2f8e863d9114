"""Submitting: many at once, in order, in whatever transaction the caller has open."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from remuda.models.database import rows
from remuda.models.submit import NewJob, NewSpec, insert_jobs, new_array, owner_id
from tests.integration.builders import (
    OWNER,
    assert_chains,
    make_jobs,
    make_pool,
    row,
    together,
    wait_for_a_lock,
)


def _pool(engine: Engine) -> int:
    with engine.begin() as connection:
        return make_pool(connection)


def test_everything_asked_for_is_kept(engine: Engine) -> None:
    spec = NewSpec(
        command=["sh", "-c", "echo '%s' \"$HOME\" \\ ünï {index}"],
        environment={"A": "=1", "É": "\n"},
        inputs=[{"name": "in", "url": "file:///x", "sha256": "0", "size": 1, "mode": 420}],
        outputs=[{"name": "out", "optional": True}],
        output_dir="/tmp/dir with spaces",
        join_output=True,
        output_limit_bytes=10,
    )
    job = NewJob(
        spec=0,
        name="näme",
        cores=3,
        memory_bytes=1 << 40,
        walltime_s=0.5,
        priority=-7,
        max_attempts=4,
        array_index=9,
        idempotency_key="k",
        follow=True,
    )
    pool = _pool(engine)
    with engine.begin() as connection:
        owner = owner_id(connection, OWNER)
        array = new_array(connection, owner=owner, name="a", size=1)
        [made] = insert_jobs(connection, [spec], [job], pool_id=pool, owner=owner, array_id=array)
        found = row(connection, "jobs", made)
        kept = row(connection, "job_specs", found["spec_id"])
    for name in NewJob.__slots__:
        if name not in ("spec", "deferrable"):  # what no column holds
            assert found[name] == getattr(job, name), name
    for name in NewSpec.__slots__:
        assert kept[name] == getattr(spec, name), name
    assert (found["state"], found["epoch"], found["array_id"]) == ("NEW", 0, array)
    assert found["submitted_at"].utcoffset() is not None


def test_ids_come_in_order_and_specs_are_shared(engine: Engine) -> None:
    pool = _pool(engine)
    with engine.begin() as connection:
        made = insert_jobs(
            connection,
            [NewSpec(command=["a"]), NewSpec(command=["b"])],
            [NewJob(spec=n % 2, name=str(n)) for n in range(50)],
            pool_id=pool,
            owner=owner_id(connection, OWNER),
        )
        found = rows(
            connection,
            """SELECT j.id, j.name, s.command FROM jobs j JOIN job_specs s ON s.id = j.spec_id
               ORDER BY j.id""",
        )
        assert connection.scalar(text("SELECT count(*) FROM job_specs")) == 2
    assert [r["id"] for r in found] == made
    assert [r["name"] for r in found] == [str(n) for n in range(50)]
    assert [r["command"] for r in found] == [["a"], ["b"]] * 25


def test_nothing_is_a_batch_too(engine: Engine) -> None:
    pool = _pool(engine)
    with engine.begin() as connection:
        owner = owner_id(connection, OWNER)
        assert insert_jobs(connection, [], [], pool_id=pool, owner=owner) == []


def test_twenty_thousand(engine: Engine) -> None:
    pool = _pool(engine)
    begun = time.monotonic()
    with engine.begin() as connection:
        made = make_jobs(connection, pool, 20_000)
    took_s = time.monotonic() - begun
    assert made == sorted(set(made))
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM jobs WHERE state = 'NEW'")) == 20_000
        assert connection.scalar(text("SELECT count(*) FROM events WHERE kind = 'job'")) == 20_000
    assert took_s < 10, f"{took_s:.1f} s"


def test_inside_the_producers_own_session(engine: Engine) -> None:
    pool = _pool(engine)
    with Session(engine) as session:
        session.execute(text("CREATE TABLE theirs (id int)"))
        session.execute(text("INSERT INTO theirs VALUES (1)"))
        make_jobs(session.connection(), pool, 3)
        session.rollback()
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM jobs")) == 0
        assert connection.scalar(text("SELECT count(*) FROM job_specs")) == 0
        assert rows(connection, "SELECT FROM pg_tables WHERE tablename = 'theirs'") == []
    with Session(engine) as session:
        made = make_jobs(session.connection(), pool, 3)
        session.commit()
    with engine.begin() as connection:
        assert [r["id"] for r in rows(connection, "SELECT id FROM jobs ORDER BY id")] == made
        assert_chains(connection)


def test_a_bad_job_takes_the_batch_with_it(engine: Engine) -> None:
    pool = _pool(engine)

    def submit() -> None:
        with engine.begin() as connection:
            make_jobs(connection, pool, 2)
            make_jobs(connection, pool, 1, cores=0)

    with pytest.raises(DBAPIError, match="ck_jobs_cores"):
        submit()
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM jobs")) == 0


def test_an_idempotency_key_gives_the_first_job(engine: Engine) -> None:
    pool = _pool(engine)
    with engine.begin() as connection:
        [first] = make_jobs(connection, pool, idempotency_key="k", name="first")
    with engine.begin() as connection:
        assert make_jobs(connection, pool, idempotency_key="k", name="second") == [first]
        assert (
            make_jobs(connection, pool, 3, idempotency_key="l")
            == [make_jobs(connection, pool, idempotency_key="l")[0]] * 3
        )  # also within one call
        [other] = make_jobs(connection, pool, owner="bob", idempotency_key="k")
        assert other != first  # a key is its owner's
        owner = owner_id(connection, OWNER)
        mixed = insert_jobs(
            connection,
            [NewSpec(command=["x"])],
            [
                NewJob(spec=0, name="new"),
                NewJob(spec=0, idempotency_key="k"),
                NewJob(spec=0, idempotency_key="m"),
            ],
            pool_id=pool,
            owner=owner,
        )
        assert mixed[1] == first
        assert len(set(mixed)) == 3
        assert row(connection, "jobs", first)["name"] == "first"
        assert row(connection, "jobs", mixed[0])["name"] == "new"
        assert_chains(connection)


def test_idempotency_keys_at_the_same_time(engine: Engine) -> None:
    pool = _pool(engine)

    def submit() -> list[int]:
        with engine.begin() as connection:
            return make_jobs(connection, pool, idempotency_key="k")

    found = together(*[submit] * 6)
    assert len({ids[0] for ids in found}) == 1
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM jobs")) == 1


def test_a_key_of_a_rolled_back_submit_is_free(engine: Engine) -> None:
    """The second submit waits for the first transaction's end, then takes its place."""
    pool = _pool(engine)
    with engine.connect() as first:
        make_jobs(first, pool, idempotency_key="k", name="first")

        def second() -> list[int]:
            with engine.begin() as connection:
                return make_jobs(connection, pool, idempotency_key="k", name="second")

        def roll_back() -> list[int]:
            wait_for_a_lock(engine)
            first.rollback()
            return []

        [made], _ = together(second, roll_back)
    with engine.begin() as connection:
        assert row(connection, "jobs", made)["name"] == "second"


def test_owners_are_made_once(engine: Engine) -> None:
    def get() -> int:
        with engine.begin() as connection:
            return owner_id(connection, "carol")

    assert len(set(together(*[get] * 5))) == 1
