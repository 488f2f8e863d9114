"""Submitting exactly once: in a caller's transaction, and over connections that fail."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from remuda import Client, DatabaseUnavailable, JobSpec, UnknownJob, WaitTimeout
from remuda.config import load_settings
from tests.integration.workbench import Workbench


def test_a_session_commits_or_rolls_back_the_job(bench: Workbench, database_url: str) -> None:
    bench.pool()
    engine = create_engine(database_url)
    with bench.client() as client:
        with Session(engine) as session, session.begin():
            kept = client.submit(JobSpec(["bill"]), pool="herd", session=session)
            with pytest.raises(WaitTimeout):
                kept.result(timeout_s=0.1)
            with pytest.raises(UnknownJob):
                client.job(kept.id)
        assert kept.state == "NEW"
        session = Session(engine)
        gone = client.submit_many([JobSpec(["bill"])] * 3, pool="herd", session=session)
        session.rollback()
        session.close()
        with pytest.raises(UnknownJob, match="rolled back"):
            gone[0].result()
        with pytest.raises(UnknownJob, match="rolled back"):
            client.wait([kept, *gone])
        with engine.begin() as connection:
            client.submit(JobSpec(["bill"]), pool="herd", session=connection)
        with Session(engine) as session, session.begin():
            savepoint = session.begin_nested()
            lost = client.submit(JobSpec(["bill"]), pool="herd", session=session)
            savepoint.rollback()
        with pytest.raises(UnknownJob):
            lost.wait()
        assert client.counts("herd")["NEW"] == 2
    engine.dispose()


def test_a_job_of_a_session_can_be_waited_for_before_the_commit(
    bench: Workbench, database_url: str
) -> None:
    bench.pool()
    engine = create_engine(database_url)
    with bench.client() as client, Session(engine) as session:
        job = client.submit(JobSpec(["bill"]), pool="herd", session=session)
        codes: list[int | None] = []
        waiter = threading.Thread(target=lambda: codes.append(job.result(20).exit_code))
        waiter.start()
        session.commit()
        bench.end(job.id)
        waiter.join(timeout=20)
        assert codes == [0]
    engine.dispose()


def test_a_database_that_is_away_is_told_with_a_hint(tmp_path: Path) -> None:
    settings = load_settings(
        database_url="postgresql://nobody@127.0.0.1:1/none", data_dir=tmp_path, state_dir=tmp_path
    )
    with pytest.raises(DatabaseUnavailable) as caught:
        Client(settings)
    assert caught.value.hint


def test_a_dropped_connection_submits_exactly_once(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        client.submit(JobSpec(["true"]), pool="herd")
        _kill_connections(bench)
        client.submit(JobSpec(["true"]), pool="herd")
        assert client.counts("herd")["NEW"] == 2


def test_a_commit_without_an_answer_is_looked_up(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection dies just after, or just before, the COMMIT took effect."""
    from sqlalchemy.engine import default

    dialect: Any = default.DefaultDialect
    real = dialect.do_commit
    bench.pool()
    for after in (True, False):

        def commit(self: Any, connection: Any, after: bool = after) -> None:
            monkeypatch.setattr(dialect, "do_commit", real)
            if after:
                real(self, connection)
            _kill_connections(bench)
            connection.execute("SELECT 1")

        with bench.client() as client:
            client.submit(JobSpec(["true"]), pool="herd")
            before = client.counts("herd")["NEW"]
            monkeypatch.setattr(dialect, "do_commit", commit)
            job = client.submit(JobSpec(["true"]), pool="herd")
            assert job.state == "NEW"
            assert client.counts("herd")["NEW"] == before + 1


def _kill_connections(bench: Workbench) -> None:
    with bench.engine.connect() as connection:
        connection.execute(
            text(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()"""
            )
        )
