"""A database of simulated VMs with many jobs waiting, for benchmarks of placing and sizing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text

from remuda.models import migrate, owners, pool_life
from remuda.models.database import make_engine, transact
from remuda.models.submit import NewJob, NewSpec, insert_jobs, owner_id
from remuda.models.vm_life import insert_vms

GIB = 1 << 30


@contextmanager
def database(server_url: str, name: str) -> Iterator[str]:
    """Give the URL of a new database with the schema."""
    server = make_engine(server_url)
    with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    url = server.url.set(database=name).render_as_string(hide_password=False)
    engine = make_engine(url)
    migrate.upgrade(engine)
    engine.dispose()
    try:
        yield url
    finally:
        with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        server.dispose()


def fill(engine: Engine, *, jobs: int, vms: int, people: int, pools: int, slots: int = 1) -> None:
    """Make pools of VMs and jobs of all owners in all of them, in four shapes."""

    def work(connection: Connection) -> None:
        made = [
            make_pool(connection, f"pool-{number}", vms // pools, slots=slots)
            for number in range(pools)
        ]
        for number in range(people):
            owner = owner_id(connection, f"owner-{number}")
            owners.change(connection, f"owner-{number}", {"weight": 1.0 + number % 5})
            for place, pool in enumerate(made):
                count = jobs // (people * pools) + (
                    number * pools + place < jobs % (people * pools)
                )
                make_jobs(connection, pool, owner, count)

    transact(engine, work)
    analyze(engine)


def make_pool(connection: Connection, name: str, vms: int, *, slots: int) -> int:
    pool = pool_life.insert_pool(
        connection,
        name,
        owner="bench",
        provider="noop",
        backend="noop",
        fields={
            "slots_per_vm": slots,
            "memory_bytes_per_vm": 64 * GIB,
            "is_elastic": True,
            "elastic_minimum_slots": 0,
            "elastic_maximum_slots": 2 * vms * slots,
            "stalling_interval_s": 3600.0,
        },
    )
    pool_life.submit_pool(connection, pool)
    insert_vms(connection, pool, vms)
    for state in ("SUBMITTED", "RUNNING"):
        connection.execute(
            text("UPDATE vms SET provider_id = 'vm-' || id, state = :state WHERE pool_id = :pool"),
            {"state": state, "pool": pool},
        )
    return pool


def make_jobs(connection: Connection, pool: int, owner: int, count: int, *, gib: int = 1) -> None:
    if count:
        insert_jobs(
            connection,
            [NewSpec(command=["true"])],
            [NewJob(spec=0, memory_bytes=(gib + n % 4) * GIB) for n in range(count)],
            pool_id=pool,
            owner=owner,
        )


def analyze(engine: Engine) -> None:
    """Let the planner know the tables, as autovacuum does by and by."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
