"""The embedded PostgreSQL server: one per data directory, shared by all its processes and shells.

    <data_dir>/postgres/cluster          PostgreSQL's own files
                        password         written before the cluster is made, never changed
                        connection.json  port, password and process of the server last started
                        lock             held while somebody starts or stops the server
    <state_dir>/log/postgres.log

It listens on a loopback port only, asks for the password (scram), and is crash-safe: commits are
synced. Whoever finds it dead starts it again. The port stays the same unless something else has
taken it meanwhile, so ask `ensure_server` again after losing the connection.
"""

from __future__ import annotations

import json
import secrets
import signal
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from remuda.config import Settings
from remuda.embedded.cluster import (
    ENVIRONMENT,
    HOST,
    USER,
    Postmaster,
    children,
    clear_dead_server,
    clear_drafts,
    find_postmaster,
    free_port,
    make_cluster,
    server_command,
    server_error,
)
from remuda.embedded.daemon import (
    Identity,
    alive,
    directory_error,
    locked,
    private_dir,
    read_whole,
    rotate,
    send_signal,
    spawn_detached,
    usage,
    wait_gone,
    write_private,
)
from remuda.embedded.launcher import find_binaries, user_prefix
from remuda.errors import EmbeddedError

DATABASE = "remuda"

_LOCK_TIMEOUT_S = 120.0
#: Crash recovery replays at most `max_wal_size`, which a slow disk may take minutes for.
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 30.0
#: After a fast shutdown has not ended in time: an immediate one, then a kill.
_STOP_STEPS_S = ((signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What the embedded server is doing; `pid` and `port` are 0 unless it runs."""

    running: bool
    ready: bool
    pid: int
    port: int
    memory_bytes: int
    cluster: Path
    log: Path


@dataclass(frozen=True, slots=True)
class _Connection:
    """connection.json"""

    port: int
    password: str
    pid: int = 0
    started: int = 0
    database: bool = False  # whether CREATE DATABASE has been done

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}:{self.password}@{HOST}:{self.port}/{DATABASE}"


def ensure_server(settings: Settings) -> str:
    """Return the SQLAlchemy URL of the server (it holds the password), starting it if it is down.

    Costs a few file reads when it runs, about a second when it does not, three the first time.
    Any number of processes may call at once. Raises EmbeddedError.
    """
    known = _read(settings)
    if known is not None and known.database and _serves(settings, known):
        return known.url
    home = private_dir(_home(settings))
    private_dir(_log(settings).parent)
    try:
        with locked(home / "lock", _LOCK_TIMEOUT_S):
            return _ensure(settings)
    except OSError as error:
        raise directory_error(home, error) from error


def server_url(settings: Settings) -> str | None:
    """Return the URL of the server last started, running or not; None if there never was one."""
    known = _read(settings)
    return known.url if known is not None and known.database else None


def stop_server(settings: Settings, *, timeout_s: float = _STOP_TIMEOUT_S) -> bool:
    """Stop the server, ending its clients' sessions; return whether it was running.

    When it has not ended in `timeout_s` it is killed; the next start recovers from its log.
    """
    home = _home(settings)
    if not home.is_dir():
        return False
    with locked(home / "lock", _LOCK_TIMEOUT_S):
        server = find_postmaster(home / "cluster")
        if server is None:
            return False
        for number, patience_s in ((signal.SIGINT, timeout_s), *_STOP_STEPS_S):
            send_signal(server.process, number)
            if wait_gone(server.process, patience_s):
                break
        clear_dead_server(home / "cluster")
        return True


def server_status(settings: Settings) -> ServerStatus:
    """Tell what the server is doing; never starts it."""
    cluster = _home(settings) / "cluster"
    server = find_postmaster(cluster)
    memory = 0
    if server is not None:
        memory = sum(usage(p)[0] for p in [server.process, *children(server.process)])
    return ServerStatus(
        running=server is not None,
        ready=server is not None and server.ready,
        pid=server.process.pid if server else 0,
        port=server.port if server else 0,
        memory_bytes=memory,
        cluster=cluster,
        log=_log(settings),
    )


def _ensure(settings: Settings) -> str:
    home = _home(settings)
    cluster = home / "cluster"
    binaries = find_binaries(cluster)
    prefix = user_prefix(binaries, cluster)
    password = _password(home, fresh=not cluster.exists())
    if not cluster.exists():
        make_cluster(cluster, binaries, prefix, password_file=home / "password")
    clear_drafts(cluster)
    known = _read(settings) or _Connection(port=0, password=password)
    server = find_postmaster(cluster)
    if server is not None and not _settle(cluster, server.process):
        server = None
    if server is None:
        clear_dead_server(cluster)
        server = _start(settings, binaries, prefix, known.port)
    process = server.process
    known = replace(
        known, port=server.port, password=password, pid=process.pid, started=process.started
    )
    _write(home, known)
    if not known.database:
        _create_database(known)
        known = replace(known, database=True)
        _write(home, known)
    return known.url


def _start(settings: Settings, binaries: Path, prefix: tuple[str, ...], port: int) -> Postmaster:
    """Start the server on `port`, or on another one if that is taken; wait until it answers."""
    cluster, log = _home(settings) / "cluster", _log(settings)
    rotate(log)
    output = ""
    for _ in range(5):
        port = free_port(port)
        before = log.stat().st_size if log.exists() else 0
        process = spawn_detached(
            server_command(binaries, cluster, port),
            env=ENVIRONMENT,
            cwd=cluster.parent,
            log=log,
            prefix=prefix,
        )
        if _settle(cluster, process):
            return Postmaster(process, port, True)
        server = find_postmaster(cluster)
        if server is not None and _settle(cluster, server.process):
            return server  # started by somebody who was killed before it could be seen
        output = read_whole(log, before)
        if "could not create any TCP/IP sockets" not in output:
            break
        port = 0
    raise _hinted(server_error("the embedded database does not start", output, cluster), log)


def _settle(cluster: Path, process: Identity) -> bool:
    """Wait until the server answers (True) or has ended (False)."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while alive(process):
        server = find_postmaster(cluster)
        if server is not None and server.process == process and server.ready:
            return True
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"the embedded database (process {process.pid}) has not become ready "
                f"in {_START_TIMEOUT_S:g} s",
                hint="it may still be recovering from a crash; try again",
            )
        time.sleep(0.005)
    return False


def _create_database(known: _Connection) -> None:
    import psycopg
    from psycopg import errors, sql

    try:
        with psycopg.connect(
            host=HOST,
            port=known.port,
            user=USER,
            password=known.password,
            dbname="postgres",
            connect_timeout=10,
            autocommit=True,
        ) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
    except errors.DuplicateDatabase:
        pass
    except psycopg.Error as error:
        raise EmbeddedError(f"cannot make the database {DATABASE}: {error}") from error


def _password(home: Path, *, fresh: bool) -> str:
    """Return the cluster's password; if `fresh`, make one when there is none."""
    file = home / "password"
    if fresh and not file.exists():
        write_private(file, secrets.token_urlsafe(32))
    try:
        return file.read_text()
    except FileNotFoundError:
        raise EmbeddedError(
            f"{file} is missing: nobody can log in to {home / 'cluster'}",
            hint="put it back, or set REMUDA_DATA_DIR to a new directory",
        ) from None


def _serves(settings: Settings, known: _Connection) -> bool:
    server = find_postmaster(_home(settings) / "cluster")
    return (
        server is not None
        and server.ready
        and server.port == known.port
        and server.process == (known.pid, known.started)
    )


def _read(settings: Settings) -> _Connection | None:
    try:
        return _Connection(**json.loads((_home(settings) / "connection.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write(home: Path, known: _Connection) -> None:
    write_private(home / "connection.json", json.dumps(asdict(known)))


def _hinted(error: EmbeddedError, log: Path) -> EmbeddedError:
    return EmbeddedError(error.message, hint=error.hint or f"see {log}")


def _home(settings: Settings) -> Path:
    return settings.data_dir / "postgres"


def _log(settings: Settings) -> Path:
    return settings.state_dir / "log" / "postgres.log"
