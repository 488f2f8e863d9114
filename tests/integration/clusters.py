"""An embedded PostgreSQL server for tests: asked, killed, and started by other processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from remuda.config import Settings, load_settings
from remuda.embedded import stop_server
from remuda.embedded.daemon import identify

ROOT = Path(__file__).parents[2]


def own_settings(tmp_path: Path) -> Iterator[Settings]:
    """Give settings whose server, if one gets started, is stopped."""
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
