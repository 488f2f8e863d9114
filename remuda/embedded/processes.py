"""The embedded worker and beat: one of each per state directory, detached from whoever started it.

<state_dir>/run/<name>.pid   "pid starttime", written by the process itself before it begins
                lock         held while somebody starts or stops them
<state_dir>/log/<name>.log   put aside as <name>.log.1 at a start when past 10 MiB
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from remuda.config import Settings
from remuda.embedded.daemon import (
    Identity,
    alive,
    directory_error,
    locked,
    private_dir,
    read_pid_file,
    read_whole,
    rotate,
    send_signal,
    spawn_detached,
    usage,
    wait_gone,
)
from remuda.errors import EmbeddedError

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT_S = 60.0
_KILL_TIMEOUT_S = 5.0
#: How long a start watches for a command that cannot run at all.
_FIRST_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One of the embedded processes; `pid`, memory and CPU time are 0 unless it runs."""

    name: str
    pid: int
    running: bool
    rss_bytes: int
    cpu_s: float


def default_commands(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the command of each process by its name, in the order they are started."""
    tasks = (sys.executable, "-m", "remuda.tasks")
    level = f"--loglevel={settings.log_level}"
    return {
        "worker": (*tasks, "worker", level, "--hostname=embedded@%h"),
        "beat": (*tasks, "beat", level),
    }


def start(settings: Settings, *, commands: Mapping[str, Sequence[str]] | None = None) -> None:
    """Start what is not running of `commands` (`default_commands` if None).

    Returns in about 0.1 s, before they are ready for work. Any number of processes may call at the
    same time. Raises EmbeddedError, also when a process has ended by then.
    """
    run = private_dir(_run(settings))
    logs = private_dir(settings.state_dir / "log")
    try:
        with locked(run / "lock", _LOCK_TIMEOUT_S):
            started: list[tuple[str, Identity, Path, int]] = []
            for name, argv in (commands or default_commands(settings)).items():
                pid_file, log = run / f"{name}.pid", logs / f"{name}.log"
                if alive(read_pid_file(pid_file)):
                    continue
                rotate(log)
                before = log.stat().st_size if log.exists() else 0
                process = spawn_detached(
                    argv, env=_environment(settings), cwd=run, log=log, pid_file=pid_file
                )
                logger.info("started %s (process %d)", name, process.pid)
                started.append((name, process, log, before))
            deadline = time.monotonic() + _FIRST_LOOK_S
            for name, process, log, before in started:
                if wait_gone(process, deadline - time.monotonic()):
                    raise _ended(name, log, before)
    except OSError as error:
        raise directory_error(settings.state_dir, error) from error


def stop(
    settings: Settings,
    *,
    timeout_s: float = 30.0,
    names: Sequence[str] = ("beat", "worker"),
) -> list[str]:
    """Ask the processes to finish what they are at and end; return the names of those killed.

    All are asked at once, and those still there after `timeout_s` are killed with their process
    groups. Jobs on VMs are not touched.
    """
    run = _run(settings)
    if not run.is_dir():
        return []
    killed = []
    with locked(run / "lock", _LOCK_TIMEOUT_S + timeout_s):
        deadline = time.monotonic() + timeout_s
        asked: dict[str, Identity] = {}
        for name in names:
            process = read_pid_file(run / f"{name}.pid")
            if process is not None and alive(process):
                asked[name] = process
                send_signal(process, signal.SIGTERM)
        for name, process in asked.items():
            if not wait_gone(process, deadline - time.monotonic()):
                killed.append(name)
                logger.warning("%s did not end in %g s: killed", name, timeout_s)
                send_signal(process, signal.SIGKILL, group=True)
                wait_gone(process, _KILL_TIMEOUT_S)
        for name in names:
            (run / f"{name}.pid").unlink(missing_ok=True)
    return killed


def status(settings: Settings, *, names: Sequence[str] = ("worker", "beat")) -> list[ProcessStatus]:
    """Tell what the processes are doing."""
    found = []
    for name in names:
        process = read_pid_file(_run(settings) / f"{name}.pid")
        if process is None or not alive(process):
            found.append(ProcessStatus(name, 0, False, 0, 0.0))
        else:
            memory, cpu_s = usage(process)
            found.append(ProcessStatus(name, process.pid, True, memory, cpu_s))
    return found


def _environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment with the settings in force, wherever they came from."""
    environment = dict(os.environ)
    for name in {"data_dir", "state_dir"} | settings.model_fields_set:
        value = getattr(settings, name)
        if value is not None:
            plain = value.get_secret_value() if isinstance(value, SecretStr) else value
            environment[f"REMUDA_{name.upper()}"] = str(plain)
    return environment


def _ended(name: str, log: Path, offset: int) -> EmbeddedError:
    lines = [line.strip() for line in read_whole(log, offset).splitlines() if line.strip()]
    return EmbeddedError(
        f"the {name} ended at once: {lines[-1] if lines else 'it said nothing'}", hint=f"see {log}"
    )


def _run(settings: Settings) -> Path:
    return settings.state_dir / "run"
