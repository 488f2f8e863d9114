"""Processes of a VM: who is alive, who is left over, and ending them all for certain.

A zombie counts as dead: it runs nothing, and a slow parent may leave it for seconds. Whatever runs
on a VM carries `REMUDA_VM_HOME=<the VM's folder>` in its environment; that is how it is found when
nobody remembers its process id.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any

SIGNALS = tuple(set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP})


def now() -> float:
    """Return CLOCK_BOOTTIME in seconds: it never jumps, and counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def slurp(path: str) -> bytes:
    """Return a file's content, nothing if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def wait_for(condition: Callable[[], Any], seconds: float) -> bool:
    """Wait until the condition holds; False if it does not in that time."""
    deadline = now() + seconds
    while not condition():
        if now() > deadline:
            return False
        time.sleep(0.003)
    return True


def describe_process(pid: int) -> tuple[int, int, int] | None:
    """Return group, session and start time (ticks) of a live process, else None."""
    field = slurp(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (
        (int(field[2]), int(field[3]), int(field[19])) if field and field[0] not in b"ZX" else None
    )


def runner_pid(home: str) -> int:
    """Return the process id of the live runner of this home, or 0."""
    pid, _, started = slurp(home + "/runner.pid").strip().partition(b" ")
    about = describe_process(int(pid)) if pid.isdigit() and started.isdigit() else None
    return int(pid) if about and about[2] == int(started) else 0


def own_identity() -> str:
    """Return what `runner_pid` looks for in the file runner.pid."""
    about = describe_process(os.getpid())
    return f"{os.getpid()} {about[2] if about else 0}"


def boot_id() -> str:
    """Return what changes when the machine restarts."""
    return slurp("/proc/sys/kernel/random/boot_id").decode().strip()


def environment(pid: int, name: bytes) -> bytes:
    """Return a variable of a process's first environment, nothing if it is not there."""
    whole = b"\0" + slurp(f"/proc/{pid}/environ")
    return whole.partition(b"\0" + name + b"=")[2].partition(b"\0")[0]


def signal_process(pid: int, number: int = signal.SIGKILL, *, group: bool = True) -> None:
    """Signal a process's group, or it alone if it leads none; if it is dead, no matter."""
    for send in (os.killpg, os.kill) if group else (os.kill,):
        try:
            return send(pid, number)
        except OSError:
            continue


def kill_all(
    home: str, *, session: int = 0, groups: Iterable[int] = (), runners: bool = False
) -> None:
    """Kill every process of the jobs of this home, and those groups of that session.

    With `runners` also whoever serves this home or is about to. Returns once two looks in a row
    found nobody; RuntimeError if somebody will not die.
    """
    known, name = set(groups), os.fsencode(home)
    serve = b"\0serve\0--home\0" + name + b"\0"
    clean = 0

    def ours(pid: int) -> bool:
        about = describe_process(pid) if pid != os.getpid() else None
        return about is not None and (
            (about[1] == session and about[0] in known)
            or environment(pid, b"REMUDA_VM_HOME") == name
            or (runners and serve in slurp(f"/proc/{pid}/cmdline"))
        )

    def look() -> bool:
        nonlocal clean
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if ours(pid)]
        for pid in found:
            signal_process(pid, group=False)
        clean = 0 if found else clean + 1
        return clean >= 2

    if not wait_for(look, 10.0):
        raise RuntimeError(f"there are processes of {home} that cannot be killed")


def find_command(name: str, path: str) -> str:
    """Find a program as execvp does; OSError if there is none."""
    places = [name] if "/" in name else [os.path.join(p or ".", name) for p in path.split(":")]
    found = [place for place in places if os.path.isfile(place)]
    if not found:
        raise FileNotFoundError(errno.ENOENT, "command not found", name)
    return max(found, key=lambda place: os.access(place, os.X_OK))


def launch(argv: list[str], env: dict[str, str], out: int, err: int) -> int:
    """Start a program in the current folder, in its own group, with default signals.

    Returns its process id; OSError or ValueError if it did not start.
    """
    path = find_command(argv[0], env.get("PATH") or os.defpath)
    if hasattr(os, "posix_spawn"):
        dup = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)]
        return os.posix_spawn(
            path, argv, env, file_actions=dup, setpgroup=0, setsigmask=(), setsigdef=SIGNALS
        )
    child = subprocess.Popen(
        argv, executable=path, env=env, stdout=out, stderr=err, preexec_fn=os.setpgrp
    )
    child.returncode = 0  # the runner reaps it; subprocess must never try
    return child.pid
