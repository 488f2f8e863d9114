"""A real PostgreSQL for the tests: one server a session, one database a test, cloned from a template."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from remuda.config import Settings, load_settings
from remuda.embedded import ensure_server, stop_server
from remuda.models import migrate
from remuda.models.database import make_engine

_numbers = itertools.count(1)


def plain(url: str) -> str:
    """Return the URL as libpq reads it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def sibling(url: str, database: str) -> str:
    """Return the URL of another database of the same server."""
    return make_url(url).set(database=database).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty database on a server of the session's own."""
    root: Path = tmp_path_factory.mktemp("server")
    settings: Settings = load_settings(data_dir=root / "data", state_dir=root / "state")
    try:
        yield ensure_server(settings)
    finally:
        stop_server(settings)


@pytest.fixture(scope="session")
def template(server_url: str) -> str:
    """The name of a database with the newest schema, to clone."""
    name = f"template_{os.getpid()}"
    with psycopg.connect(plain(server_url), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    engine = make_engine(sibling(server_url, name))
    migrate.upgrade(engine)
    engine.dispose()
    return name


def _fresh(server_url: str, template: str | None) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    source = f' TEMPLATE "{template}"' if template else ""
    with psycopg.connect(plain(server_url), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"{source}')
        yield sibling(server_url, name)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


fresh_database = contextmanager(_fresh)  # of a test's, or a module's, own


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """The URL of a database with the schema and nothing in it."""
    with fresh_database(server_url, template) as url:
        yield url


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """The URL of a database without a schema."""
    with fresh_database(server_url, None) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on `database_url`."""
    made = make_engine(database_url)
    yield made
    made.dispose()
