"""Processes of a VM: who is alive, who is left over, and ending them all for certain.

A zombie counts as dead: it runs nothing, and a slow parent may leave it for seconds. Whatever runs
on a VM carries `REMUDA_VM_HOME=<the VM's folder>` in its environment, and a mark (see marks.py);
that is how it is found when nobody remembers its process id.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from remuda.workers.onvm import marks

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


def processes() -> list[int]:
    """Return the process ids there are."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def members(mark: int) -> list[int]:
    """Return the live processes that have a mark, wherever they have gone."""
    return [
        pid
        for pid in processes()
        if marks.mark_of(pid) == mark and pid != os.getpid() and describe_process(pid)
    ]


def signal_tree(pid: int, mark: int, number: int) -> None:
    """Signal a process's group, and all others of its mark; each once."""
    others = [other for other in members(mark) if group_of(other) != pid]
    signal_process(pid, number)
    for other in others:
        signal_process(other, number, group=False)


def group_of(pid: int) -> int:
    """Return a process's group, 0 if it is gone."""
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def kill_all(
    home: str,
    *,
    session: int = 0,
    groups: Iterable[int] = (),
    runners: bool = False,
    captives: Callable[[], Iterable[int]] = tuple,
) -> None:
    """Kill every process of the jobs of this home, and those groups of that session.

    With `runners` also whoever serves this home or is about to, and whoever is among the
    `captives`, at every look. Returns once two looks in a row found nobody; RuntimeError if
    somebody will not die.
    """
    known, name, mark = set(groups), os.fsencode(home), marks.mark(home)
    serve = b"\0serve\0--home\0" + name + b"\0"
    clean = 0

    def ours(pid: int) -> bool:
        about = describe_process(pid) if pid != os.getpid() else None
        return about is not None and (
            (about[1] == session and about[0] in known)
            or environment(pid, b"REMUDA_VM_HOME") == name
            or marks.same_home(marks.mark_of(pid), mark)
            or (runners and serve in slurp(f"/proc/{pid}/cmdline"))
        )

    def look() -> bool:
        nonlocal clean
        found = [pid for pid in processes() if ours(pid)]
        found += [pid for pid in captives() if pid != os.getpid() and describe_process(pid)]
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


def launch(
    argv: list[str],
    env: dict[str, str],
    out: int,
    err: int,
    *,
    mark: int = 0,
    prepare: Callable[[], None] | None = None,
) -> int:
    """Start a program in the current folder, in its own group, with default signals, marked.

    `prepare` is called in the new process just before it becomes the program. Returns its process
    id; OSError or ValueError if it did not start.
    """
    path = find_command(argv[0], env.get("PATH") or os.defpath)
    marks.wear(mark)  # what the runner wears, its children inherit
    if prepare or not hasattr(os, "posix_spawn"):
        return _fork_and_exec(path, argv, env, (out, err), prepare)
    dup = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)]
    return os.posix_spawn(
        path, argv, env, file_actions=dup, setpgroup=0, setsigmask=(), setsigdef=SIGNALS
    )


def _fork_and_exec(
    path: str,
    argv: list[str],
    env: dict[str, str],
    outputs: tuple[int, int],
    prepare: Callable[[], None] | None,
) -> int:
    """Do what posix_spawn does, and more. The child tells through a pipe why it could not."""
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if not pid:
        try:
            os.setpgid(0, 0)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for target, fd in enumerate(outputs, 1):
                os.dup2(fd, target)
            if prepare:
                prepare()
            os.execve(path, argv, env)
        except BaseException as error:  # whatever it is, the parent raises it
            number = error.errno or 0 if isinstance(error, OSError) else 0
            os.write(writer, b"%d %s" % (number, str(error)[:500].encode("utf-8", "replace")))
        finally:
            os._exit(127)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    if said:
        os.waitpid(pid, 0)
        code, _, text = said.decode("utf-8", "replace").partition(" ")
        raise OSError(int(code), os.strerror(int(code)), path) if int(code) else ValueError(text)
    return pid
