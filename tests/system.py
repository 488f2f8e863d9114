"""A whole system as processes: workers and beat on a database and a broker, stopped for sure."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from remuda import Client
from remuda.config import load_settings
from tests.database import plain

T = TypeVar("T")


def eventually(what: str, probe: Callable[[], T], *, timeout_s: float = 30.0) -> T:
    """Return the first true result of `probe`; fail naming `what` when the time is up."""
    deadline = time.monotonic() + timeout_s
    pause = 0.005
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what} (last: {found!r})")
        time.sleep(pause)  # between two looks at a condition with a deadline
        pause = min(0.1, pause * 1.5)


class System:
    """Workers and beat as real processes; everything they leave is in `folder`."""

    def __init__(
        self, folder: Path, *, database_url: str, broker_url: str, **settings: str
    ) -> None:
        """Start nothing yet. `settings`: more of `remuda.config.Settings`."""
        self.folder = folder
        self.database_url = database_url
        self.environment = {
            **os.environ,
            "PYTHONFAULTHANDLER": "1",  # who does not stop tells where it stands
            "REMUDA_DATABASE_URL": database_url,
            "REMUDA_BROKER_URL": broker_url,
            "REMUDA_DATA_DIR": str(folder / "data"),
            "REMUDA_STATE_DIR": str(folder / "state"),
            "REMUDA_WATCH_TTL_S": "3",
            "REMUDA_LOG_FORMAT": "text",
            "XDG_CONFIG_HOME": str(folder / "config"),
            **{f"REMUDA_{name.upper()}": value for name, value in settings.items()},
        }
        self.settings = load_settings(
            database_url=database_url,
            broker_url=broker_url,
            data_dir=folder / "data",
            state_dir=folder / "state",
            **settings,
        )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start `celery -A remuda.tasks WORDS` as process `name`, its output in `name`.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "remuda.tasks", *words],
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def start_worker(self, name: str = "worker", *words: str) -> subprocess.Popen[bytes]:
        """Start a worker."""
        return self.start(name, "worker", "-n", f"{name}@%h", *words)

    def start_beat(self, name: str = "beat") -> subprocess.Popen[bytes]:
        """Start a beat."""
        return self.start(name, "beat")

    def kill(self, name: str) -> None:
        """Kill -9 the process and what it forked."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def stop(self, name: str, *, timeout_s: float = 15.0) -> float:
        """Ask the process to stop (SIGTERM); return the seconds it took."""
        process = self.processes.pop(name)
        began = time.monotonic()
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # its stack goes to the log
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
            raise AssertionError(
                f"{name} did not stop within {timeout_s} s; it logged:\n{self.log(name)[-5000:]}"
            ) from None
        return time.monotonic() - began

    def client(self, **more: Any) -> Client:
        """Return a client of this system."""
        return Client(self.settings, start=False, **more)

    def query(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        """Run a query on the system's database."""
        with psycopg.connect(plain(self.database_url), row_factory=dict_row) as connection:
            return connection.execute(statement, parameters).fetchall()

    def log(self, name: str) -> str:
        """Return what the process has logged."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """Kill everything: processes, then what lives on the VMs."""
        for name in list(self.processes):
            self.kill(name)
        from remuda.workers.providers import get_provider

        provider = get_provider("local", self.settings)
        for vm in provider.list(""):
            provider.terminate(vm.provider_id)


@contextlib.contextmanager
def running_system(
    folder: Path, *, database_url: str, broker_url: str = "filesystem://", **settings: str
) -> Iterator[System]:
    """Yield a system with one worker and one beat."""
    system = System(folder, database_url=database_url, broker_url=broker_url, **settings)
    try:
        system.start_worker()
        system.start_beat()
        yield system
    finally:
        system.close()


def counts(rows: list[Mapping[str, Any]]) -> dict[str, int]:
    """Return rows of (state, count) as a dict."""
    return {row["state"]: row["count"] for row in rows}
