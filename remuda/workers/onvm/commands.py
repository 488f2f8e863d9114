"""The runner's command line: `serve`, `shell` and `stop`, each on one home; `attach` is in bridge.py."""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from remuda.workers.onvm import cgroups
from remuda.workers.onvm.bridge import at_socket, attach
from remuda.workers.onvm.ledger import Ledger, dumps
from remuda.workers.onvm.processes import (
    boot_id,
    describe_process,
    kill_all,
    own_identity,
    runner_pid,
    signal_process,
    slurp,
    wait_for,
)
from remuda.workers.runner import Runner

STOPPED = "stopped"  # a file that marks a home as stopped for good
READY = '{"ready":true}'


def write(path: str, text: str) -> None:
    """Replace a file at once."""
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def write_in_place(path: str, text: str) -> None:
    """Write a short file over; possible on a full disk too, if it was written before."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.ljust(100).encode())
    finally:
        os.close(fd)


def same_file(fd: int, path: str) -> bool:
    """Tell whether the path still leads to what was opened."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def answers(home: str) -> bool:
    """Tell whether a live runner listens there."""
    try:
        at_socket(home, "connect", 5.0).close()
    except OSError:
        return False
    return runner_pid(home) != 0


def lock(home: str, seconds: float, *, or_answers: bool = False) -> int:
    """Become the only one to start or stop a runner here; -1 if `or_answers` and one answers.

    The lock is a runner's for life, and a child's of it until that runs its own program: who gets
    it knows that the last runner is dead and starts nothing any more. TimeoutError if it is not.
    """
    fd = os.open(home + "/runner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    got = [False]

    def settled() -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            got[0] = True
        except BlockingIOError:
            return or_answers and answers(home)
        return True

    settled_in_time = wait_for(settled, seconds)
    if got[0]:
        return fd
    os.close(fd)
    if settled_in_time:
        return -1
    raise TimeoutError(f"another process starts or stops the runner of {home}")


def clear(home: str, *, runners: bool) -> None:
    """Kill what a dead runner left; the caller has the lock."""
    ledger = Ledger(home + "/journal")
    same_boot = ledger.boot == boot_id()
    groups = [pid for _, _, pid in ledger.open.values() if pid > 0] if same_boot else []
    if runners or ledger.boot:
        kill_all(
            home,
            session=ledger.session,
            groups=groups,
            runners=runners,
            captives=lambda: cgroups.leftovers(home),
        )
        cgroups.clear_away(cgroups.noted(home + cgroups.NOTE))


def options_of(home: str, given: dict[str, Any]) -> dict[str, Any]:
    """Complete what was given by what was given last time, and remember it."""
    path = home + "/runner.json"
    last = json.loads(slurp(path) or b"{}")
    options = {"memory": 0, "name": "", "heartbeat": 5.0, "cgroups": 1, **last, **given}
    if options != last:
        write(path, dumps(options))
    return options


def runner_of(home: str, options: dict[str, Any]) -> Runner:
    """Return the runner that the options ask for."""
    executor, slurm = options.pop("executor", "local"), options.pop("slurm", None)
    if executor == "slurm":
        from remuda.workers.onvm.slurm import SlurmRunner  # most runners never need it

        return SlurmRunner(home, slurm=slurm, **options)
    return Runner(home, **options)


def serve(home: str, given: dict[str, Any]) -> int:
    """Have a runner serve this home, in the background; harmless if one does already."""
    if "slots" in given:
        os.makedirs(home, 0o700, exist_ok=True)
    fd = lock(home, 15.0, or_answers=True)
    if fd < 0:
        print(READY)
        return 0
    if os.path.exists(home + "/" + STOPPED) or not same_file(fd, home + "/runner.lock"):
        raise RuntimeError("this VM was stopped")
    options = options_of(home, given)
    allow_files(4 * options["slots"] + 256)
    clear(home, runners=False)
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with open(reader) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        if said.strip() != READY:
            raise RuntimeError(said or "the runner died at once")
        print(READY)
        return 0
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        detach(home, keep={fd, writer})
        runner = runner_of(home, options)
        write_in_place(home + "/runner.pid", own_identity())
        listener = at_socket(home, "listen")
        os.write(writer, READY.encode())
        os.close(writer)
        writer = -1
        runner.run(listener)
        for name in ("/runner.sock", "/runner.pid"):
            with contextlib.suppress(OSError):
                os.unlink(home + name)
        if runner.farewell:
            os.execvp(runner.farewell[0], runner.farewell)
    except BaseException:
        report(writer)
    finally:
        os._exit(0)  # whatever happened: no thread and no handler keeps a runner that failed


def report(writer: int) -> None:
    """Tell whoever waits for the start (-1: nobody does any more), then the log, what was raised."""
    for fd, text in ((writer, traceback.format_exc(0)[-2000:]), (2, traceback.format_exc())):
        with contextlib.suppress(OSError):  # on a full disk the log cannot be written
            os.write(fd, text.encode("utf-8", "replace"))


def allow_files(count: int) -> None:
    """Allow for so many open files, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def detach(home: str, *, keep: set[int]) -> None:
    """Let go of everything inherited: files, folder, terminal."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(home + "/runner.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in enumerate((null, null, log)):
        os.dup2(source, target)
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)


def stop(home: str) -> None:
    """End a home for good: its runner, its jobs, all they started. Harmless when repeated.

    Returns when nothing of it runs any more; RuntimeError or TimeoutError if that cannot be had.
    No runner starts there again.
    """
    fd = -1
    with contextlib.suppress(FileNotFoundError):
        os.close(os.open(home + "/" + STOPPED, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    pid = runner_pid(home)
    if pid:
        signal_process(pid, signal.SIGTERM, group=False)
        if not wait_for(lambda: describe_process(pid) is None, 5.0):
            signal_process(pid, group=False)
    try:
        with contextlib.suppress(FileNotFoundError):
            fd = lock(home, 10.0)
        clear(home, runners=True)
        end_slurm(home)
    finally:
        if fd >= 0:
            os.close(fd)


def end_slurm(home: str) -> None:
    """Cancel what a home has with Slurm; RuntimeError if it does not end."""
    if os.path.exists(home + "/slurm"):
        from remuda.workers.onvm.slurmcalls import Options, end_all
        from remuda.workers.onvm.slurmfiles import name_of

        given = json.loads(slurp(home + "/runner.json") or b"{}").get("slurm")
        end_all(name_of(home), Options(given or {}), dict(os.environ), wait_s=45.0)


def shell(home: str, attempt: int, words: Sequence[str] = ()) -> None:
    """Become an interactive shell, or a command, in an attempt's folder with its environment.

    It is no process of the attempt: neither its limits nor its end are the shell's.
    """
    with at_socket(home, "connect", 10.0) as sock, sock.makefile("rb") as answers:
        sock.sendall(dumps({"id": 1, "do": "where", "a": attempt}).encode() + b"\n")
        answer = json.loads(answers.readline() or b"{}")
    if not answer.get("ok"):
        raise RuntimeError(answer.get("error") or "the runner hung up")
    env = {**answer["env"], "TERM": os.environ.get("TERM", "dumb")}
    os.chdir(answer["folder"])
    with contextlib.suppress(OSError):
        os.chdir(answer["cwd"] or ".")
    if words:
        try:
            os.execvpe(words[0], list(words), env)
        except OSError as error:
            print(f"{words[0]}: {error.strerror}", file=sys.stderr)
            sys.exit(126 if error.errno == errno.EACCES else 127)
    program = os.environ.get("SHELL") or "/bin/sh"
    try:
        os.execve(program, [program], env)
    except OSError:
        os.execve("/bin/sh", ["/bin/sh"], env)


def main() -> int:
    """Do one of them; 0 if that was done, else 1 and one line that says why."""
    parser = argparse.ArgumentParser(prog="runner")
    parser.add_argument("do", choices=("serve", "attach", "shell", "stop"))
    parser.add_argument("--home", required=True, help="the VM's folder")
    parser.add_argument("--slots", type=int, help="jobs of one core that run at once")
    parser.add_argument("--memory", type=int, help="bytes for jobs; default: what the machine has")
    parser.add_argument("--name", help="what the jobs see as REMUDA_VM")
    parser.add_argument("--heartbeat", type=float, help="seconds between two beats")
    parser.add_argument("--executor", choices=("local", "slurm"), help="who runs the jobs")
    parser.add_argument("--slurm", type=json.loads, help="how, as JSON: partition, account, ...")
    parser.add_argument("--gpus", type=int, help="GPUs to lease to jobs; default: those there are")
    parser.add_argument("--cgroups", type=int, choices=(0, 1), help="0: never use control groups")
    parser.add_argument("--attempt", type=int, help="whose folder `shell` opens")
    parser.add_argument("--words", type=json.loads, help="a command for `shell`, as JSON")
    given = {k: v for k, v in vars(parser.parse_args()).items() if v is not None}
    attempt, words = given.pop("attempt", 0), given.pop("words", ())
    do, home = given.pop("do"), os.path.realpath(given.pop("home"))
    try:
        if do == "serve":
            return serve(home, given)
        if do == "shell":
            shell(home, attempt, words)
        (stop if do == "stop" else attach)(home)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        print(f"runner: {error}", file=sys.stderr)
        return 1
    return 0
