"""The migrations make exactly what the models say, from nothing and from each earlier revision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text

from remuda.errors import DatabaseUnavailable, Refused
from remuda.models import Base, migrate
from remuda.models.database import make_engine, rows
from remuda.models.states import edges
from tests.integration.builders import make_jobs, make_pool, together

# What PostgreSQL itself says of a schema; Alembic's comparison leaves CHECKs and predicates out.
_COLUMNS = """
    SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity
    FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2
"""
_CONSTRAINTS = """
    SELECT conrelid::regclass::text AS owner, conname, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2
"""
_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"


@pytest.fixture
def empty_engine(empty_database_url: str) -> Iterator[Engine]:
    """An engine on a database without a schema."""
    made = make_engine(empty_database_url)
    yield made
    made.dispose()


def _schema(connection: Connection) -> list[dict[str, object]]:
    found = [
        dict(row) for query in (_COLUMNS, _CONSTRAINTS, _INDEXES) for row in rows(connection, query)
    ]
    return [
        row
        for row in found
        if "alembic_version" not in map(str, row.values())
        and "alembic_version_pkc" not in map(str, row.values())
    ]


def test_there_is_one_line_of_revisions() -> None:
    assert migrate.revisions()[:9] == [f"{n:04}" for n in range(1, 10)]
    assert len(set(migrate.revisions())) == len(migrate.revisions())
    assert migrate.head() == migrate.revisions()[-1]


def test_no_revision_is_too_long() -> None:
    folder = Path(migrate.__file__).parent / "migrations" / "versions"
    lengths = {p.name: len(p.read_text("utf-8").splitlines()) for p in folder.glob("*.*")}
    assert len(lengths) >= 5
    assert max(lengths.values()) < 400, lengths


@pytest.mark.parametrize("revision", [None, *migrate.revisions()])
def test_upgrade_from_each_revision(empty_engine: Engine, revision: str | None) -> None:
    assert migrate.current(empty_engine) is None
    if revision is not None:
        migrate.upgrade(empty_engine, revision)
        assert migrate.current(empty_engine) == revision
    migrate.upgrade(empty_engine)
    migrate.check(empty_engine)
    assert migrate.differences(empty_engine) == []


def test_rows_of_an_earlier_revision_survive(empty_engine: Engine) -> None:
    migrate.upgrade(empty_engine, "0001")
    with empty_engine.begin() as connection:
        connection.execute(text("INSERT INTO owners (name) VALUES ('alice')"))
    migrate.upgrade(empty_engine)
    with empty_engine.begin() as connection:
        make_jobs(connection, make_pool(connection))
        assert connection.scalar(text("SELECT count(*) FROM owners")) == 1


def test_migrations_equal_models(engine: Engine, empty_engine: Engine) -> None:
    """Also where Alembic does not look: CHECKs, predicates of indexes, identities."""
    Base.metadata.create_all(empty_engine)
    with engine.begin() as migrated, empty_engine.begin() as made:
        assert _schema(migrated) == _schema(made)


def test_differences_are_seen(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE jobs DROP COLUMN message"))
    assert migrate.differences(engine)


def test_the_database_knows_the_edges(engine: Engine) -> None:
    with engine.begin() as connection:
        found = rows(connection, "SELECT kind, old, new FROM transitions")
    assert {(row["kind"], row["old"], row["new"]) for row in found} == set(edges())


def test_several_upgrades_at_once(empty_engine: Engine) -> None:
    together(*[lambda: migrate.upgrade(empty_engine)] * 3)
    migrate.check(empty_engine)
    assert migrate.differences(empty_engine) == []


def test_a_failed_upgrade_leaves_nothing(empty_engine: Engine) -> None:
    """Revision 0003 stumbles over a function of its own that is already there."""
    with empty_engine.begin() as connection:
        connection.execute(
            text("CREATE FUNCTION remuda_born() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        )
    with pytest.raises(Exception, match="remuda_born"):
        migrate.upgrade(empty_engine)
    assert migrate.current(empty_engine) is None
    with empty_engine.begin() as connection:
        assert rows(connection, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []


def test_check_tells_what_to_do(empty_engine: Engine) -> None:
    with pytest.raises(Refused, match="db upgrade"):
        migrate.check(empty_engine)


def test_a_newer_database_is_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for action in (migrate.upgrade, migrate.check):
        with pytest.raises(Refused, match="9999"):
            action(engine)


def test_no_server_no_upgrade() -> None:
    nowhere = make_engine("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnavailable):
        migrate.upgrade(nowhere)
