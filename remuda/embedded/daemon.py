"""Detached processes: start one, know it again, end it; and the lock between several starters.

A process is known by its pid *and* its start time, so a reused pid is never mistaken for it. A
zombie counts as ended: whoever adopted it may take seconds to reap it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from remuda.errors import EmbeddedError

_LOG_LIMIT_BYTES = 10 << 20

# Writes "pid starttime" (fields 1 and 22 of /proc/self/stat; "sh" has no spaces) before it becomes
# the daemon, so that the file exists as soon as the daemon does, whatever happens to the starter.
_SHELL = """
umask 077
read -r pid b c d e f g h i j k l m n o p q r s t u started rest </proc/self/stat || exit 1
echo "$pid $started"
if [ -n "$1" ]; then echo "$pid $started" >"$1.new" && mv -f "$1.new" "$1" || exit 1; fi
shift
exec "$@" >&2
"""


class Identity(NamedTuple):
    """One process, for as long as the machine runs."""

    pid: int
    started: int  # clock ticks after boot


def identify(pid: int) -> Identity | None:
    """Return the living process `pid`; None if there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (OSError, ValueError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZXx" else Identity(pid, int(fields[19]))


def alive(process: Identity | None) -> bool:
    """Tell whether this very process still runs."""
    return process is not None and identify(process.pid) == process


def read_pid_file(path: Path) -> Identity | None:
    """Return the process a pid file names, running or not; None without a readable file."""
    try:
        pid, started = path.read_text().split()
        return Identity(int(pid), int(started))
    except (OSError, ValueError):
        return None


def spawn_detached(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    pid_file: Path | None = None,
    prefix: Sequence[str] = (),
) -> Identity:
    """Start `argv` in its own session, child of nobody here, its output appended to `log`.

    `prefix` is a command that ends by executing its arguments (as `unshare` does).
    """
    with open(log, "ab", opener=_private) as output:
        command = [*prefix, "/bin/sh", "-c", _SHELL, "sh", str(pid_file or ""), *argv]
        try:
            done = subprocess.run(
                ["setsid", "--fork", *command],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                check=False,
            )
        except OSError as error:
            raise EmbeddedError(f"cannot run setsid: {error}", hint="install util-linux") from error
    try:
        pid, started = done.stdout.split()
        return Identity(int(pid), int(started))
    except ValueError:
        raise EmbeddedError(f"cannot start {argv[0]}", hint=f"see {log}") from None


def wait_gone(process: Identity, timeout_s: float) -> bool:
    """Wait until the process has ended; False if it has not in time."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    except OSError:  # a kernel without it
        deadline = time.monotonic() + timeout_s
        while alive(process) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not alive(process)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if alive(process):
            poll.poll(max(0.0, timeout_s) * 1000)
        return not alive(process)
    finally:
        os.close(fd)


def send_signal(process: Identity, number: signal.Signals, *, group: bool = False) -> None:
    """Signal the process (and its process group); nothing if it has ended."""
    with suppress(ProcessLookupError):
        if alive(process):
            (os.killpg if group else os.kill)(process.pid, number)


def rotate(log: Path) -> None:
    """Put the log aside as `<name>.1` when it has grown past 10 MiB."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_LIMIT_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))


def read_whole(log: Path, offset: int) -> str:
    """Return what the log holds past `offset` bytes; "" if it is gone."""
    try:
        with open(log, "rb") as file:
            file.seek(offset)
            return file.read(1 << 20).decode(errors="replace")
    except OSError:
        return ""


def write_private(path: Path, text: str) -> None:
    """Write the file with mode 0600: whole, synced, or not at all."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with open(draft, "w", opener=_private) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def usage(process: Identity) -> tuple[int, float]:
    """Return (memory in bytes, CPU seconds) of a process; zeros if it has ended.

    Memory shared with other processes counts in proportion where the kernel tells (PSS).
    """
    proc = Path(f"/proc/{process.pid}")
    try:
        fields = (proc / "stat").read_text(errors="replace").rpartition(")")[2].split()
        memory = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        with suppress(OSError, StopIteration), open(proc / "smaps_rollup") as file:
            memory = int(next(ln for ln in file if ln.startswith("Pss:")).split()[1]) * 1024
        return memory, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0, 0.0


def private_dir(path: Path) -> Path:
    """Make `path` and its missing parents with mode 0700; leave what exists as it is.

    Raises EmbeddedError if it cannot be made or written.
    """
    try:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for folder in reversed(missing):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
        if not path.is_dir():
            raise EmbeddedError(f"{path} is not a directory")
    except OSError as error:
        raise directory_error(path, error) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise directory_error(path, OSError(errno.EACCES, os.strerror(errno.EACCES)))
    return path


def directory_error(path: Path, error: OSError) -> EmbeddedError:
    """Say what is wrong with a file or directory of ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EmbeddedError(
            f"no space left for {path}", hint="free some, or set REMUDA_DATA_DIR elsewhere"
        )
    return EmbeddedError(
        f"cannot write {path}: {error.strerror or error}",
        hint="set REMUDA_DATA_DIR and REMUDA_STATE_DIR to directories you can write",
    )


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path`; it falls with its process, so it is never stale.

    Raises EmbeddedError naming the holder when it is not free in time.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise directory_error(path, error) from error
    try:
        deadline = time.monotonic() + timeout_s
        while not _try_lock(fd):
            if time.monotonic() > deadline:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                raise EmbeddedError(
                    f"process {holder} has held {path} for more than {timeout_s:g} s",
                    hint=f"see what it does (ps {holder}) and end it if it hangs",
                )
            time.sleep(0.01)
        with suppress(OSError):  # only for the message above
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
