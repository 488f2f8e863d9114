"""Bringing up: an empty database gets its schema, another release's is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from remuda import Client, DatabaseUnavailable, JobSpec, Refused, embedded, system
from remuda.config import load_settings
from remuda.models import migrate
from remuda.models.database import make_engine
from tests.integration.builders import together


def test_an_empty_database_gets_its_schema(empty_database_url: str, tmp_path: Path) -> None:
    settings = load_settings(database_url=empty_database_url, data_dir=tmp_path, state_dir=tmp_path)
    together(*[lambda: system.bring_up(settings)] * 4)
    engine = make_engine(empty_database_url)
    migrate.check(engine)
    with Client(settings) as client:
        client.create_pool("herd")
        assert client.submit(JobSpec(["true"]), pool="herd").state == "NEW"
    engine.dispose()


def test_another_release_is_refused(database_url: str, tmp_path: Path) -> None:
    engine = make_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    settings = load_settings(database_url=database_url, data_dir=tmp_path, state_dir=tmp_path)
    with pytest.raises(Refused, match="remuda db upgrade"):
        Client(settings)
    engine.dispose()


def test_the_newest_revision_is_alembics() -> None:
    assert system.newest_revision() == migrate.head()


def test_nothing_is_started_unless_asked(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path / "data", state_dir=tmp_path / "state")
    with pytest.raises(DatabaseUnavailable, match="remuda up"):
        Client(settings, start=False)
    assert not (tmp_path / "data").exists()


def test_the_embedded_server_comes_back_under_a_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(data_dir=tmp_path / "data", state_dir=tmp_path / "state")
    started: list[str] = []
    monkeypatch.setattr(embedded, "start_processes", lambda settings: started.append("processes"))
    try:
        with Client(settings) as client:
            client.create_pool("herd")
            first = client.submit(JobSpec(["true"]), pool="herd")
            embedded.stop_server(settings)
            second = client.submit(JobSpec(["true"]), pool="herd")
            assert [job.id for job in client.jobs()] == [first.id, second.id]
            embedded.stop_server(settings)
            assert client.counts()["NEW"] == 2
            assert "processes" in started
    finally:
        assert system.take_down(settings) == []
    assert not embedded.server_status(settings).running
