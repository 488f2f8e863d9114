"""A PostgreSQL data directory: making it, the command that serves it, who is serving it now."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from remuda.embedded.daemon import Identity, identify, send_signal, wait_gone
from remuda.errors import EmbeddedError

USER = "remuda"
HOST = "127.0.0.1"
#: What the server's processes see; nothing of the caller's (PGDATA, LD_PRELOAD, secrets…).
ENVIRONMENT: Mapping[str, str] = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

# Below the range the kernel takes outgoing connections' ports from, so a restart finds it free.
_PORTS = range(20000, 32768)

_SERVER_SETTINGS: Mapping[str, str] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "wal_buffers": "1MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "temp_buffers": "1MB",
    "jit": "off",
    "io_method": "sync",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_workers": "0",
    "max_worker_processes": "2",
    "max_logical_replication_workers": "0",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "checkpoint_timeout": "15min",
    "autovacuum_max_workers": "1",
    "autovacuum_naptime": "30s",
    "bgwriter_lru_maxpages": "0",
    "wal_writer_delay": "10s",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The server's own story only: statements and their errors are the client's to report.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "log_autovacuum_min_duration": "-1",
    "log_line_prefix": "%m [%p] ",
}


class Postmaster(NamedTuple):
    """A running server's first process."""

    process: Identity
    port: int
    ready: bool


def make_cluster(
    cluster: Path, binaries: Path, prefix: Sequence[str], *, password_file: Path
) -> None:
    """Make the cluster: all of it or, if killed or failing, nothing but `<cluster>.new-*`."""
    # A name of its own: the initdb of a killed starter may still be writing to the last one.
    draft = cluster.with_name(f"{cluster.name}.new-{secrets.token_hex(4)}")
    command = [
        *prefix,
        str(binaries / "initdb"),
        f"--pgdata={draft}",
        f"--username={USER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--no-instructions",
        "--set=shared_buffers=32MB",
        "--set=max_connections=60",
    ]
    done = subprocess.run(
        command,
        env=ENVIRONMENT,
        cwd=cluster.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        shutil.rmtree(draft, ignore_errors=True)
        raise server_error("cannot make the embedded database", done.stdout + done.stderr, cluster)
    draft.rename(cluster)


def clear_drafts(cluster: Path) -> None:
    """Remove what starters killed in `make_cluster` left."""
    for draft in cluster.parent.glob(f"{cluster.name}.new-*"):
        shutil.rmtree(draft, ignore_errors=True)


def server_command(binaries: Path, cluster: Path, port: int) -> list[str]:
    """Return the command that serves `cluster` on `port`; no secret is in it."""
    settings = [f"--{name}={value}" for name, value in _SERVER_SETTINGS.items()]
    return [str(binaries / "postgres"), "-D", str(cluster), f"--port={port}", *settings]


def find_postmaster(cluster: Path) -> Postmaster | None:
    """Return the server that serves `cluster` now, if any: not a zombie, not a reused pid."""
    try:
        lines = (cluster / "postmaster.pid").read_text(errors="replace").splitlines()
        process = identify(int(lines[0]))
    except (OSError, ValueError, IndexError):
        return None
    if process is None or not _works_in(process.pid, cluster):
        return None
    port = int(lines[3]) if len(lines) > 3 and lines[3].isdigit() else 0
    return Postmaster(process, port, len(lines) > 7 and lines[7].strip() == "ready")


def clear_dead_server(cluster: Path) -> None:
    """End what a killed server left running and remove its pid file.

    PostgreSQL would take a zombie's or a reused pid in it for a running server and refuse to
    start. Call only when `find_postmaster` found none, holding the lock.
    """
    for number, patience_s in ((None, 1.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 10.0)):
        left = [p for p in _processes() if _works_in(p.pid, cluster)]
        for process in left:
            if number is not None:
                send_signal(process, number)
        if all(wait_gone(process, patience_s) for process in left):
            break
    else:
        raise EmbeddedError(f"processes of a killed server of {cluster} do not end: {left}")
    (cluster / "postmaster.pid").unlink(missing_ok=True)


def children(process: Identity) -> list[Identity]:
    """Return the living child processes."""
    return [p for p in _processes() if _parent(p.pid) == process.pid]


def free_port(preferred: int = 0) -> int:
    """Return `preferred` if nothing listens on it, else another free loopback port."""
    tries = [preferred] if preferred else []
    for port in [*tries, *random.sample(_PORTS, 50), 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise EmbeddedError("no loopback port is free")


def server_error(what: str, output: str, place: Path) -> EmbeddedError:
    """Turn the output of a failed server or initdb into one line."""
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return EmbeddedError(
            f"{what}: no space left for {place}",
            hint="free some, or set REMUDA_DATA_DIR elsewhere",
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if any(w in line for w in ("FATAL:", "PANIC:", "error:", "could not"))
    ]
    return EmbeddedError(f"{what}: {(telling or lines or ['no reason given'])[-1]}")


def _works_in(pid: int, folder: Path) -> bool:
    """Tell whether the process's current directory is `folder`, as a server's always is."""
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", folder)
    except PermissionError:  # another user's, and root lacks CAP_SYS_PTRACE (in containers)
        return _named_in_command(pid, folder)
    except OSError:
        return False


def _named_in_command(pid: int, folder: Path) -> bool:
    """Tell whether it is a first server process told to serve `folder`."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[1:3] == [b"-D", os.fsencode(folder)]


def _processes() -> list[Identity]:
    found = (identify(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [process for process in found if process is not None]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
