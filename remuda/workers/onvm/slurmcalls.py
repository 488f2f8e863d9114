"""Slurm's commands: what is asked of them, what they answer, and running them beside a loop."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import time
from typing import Any, Callable, NamedTuple

from remuda.workers.onvm import marks
from remuda.workers.onvm.job import Job
from remuda.workers.onvm.processes import launch, now, signal_process

CALL_S = 90.0  # for one command; Slurm's own time-outs are shorter
TELL = '"$@"; echo "remuda-status $?"'
ARRAY = 1000  # attempts in one sbatch: what MaxArraySize allows unless it is changed
ALONE = -1  # the index of what is no array, or of which it is not told
ROW = "%A|%F|%K|%T|%r|%k"  # raw id, array's id, index, state, reason, comment

OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL"}
OVER |= {"OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "SPECIAL_EXIT", "TIMEOUT"}
# What an end that is not the command's own doing is called here.
REASONS = {"TIMEOUT": "WALLTIME", "DEADLINE": "WALLTIME", "OUT_OF_MEMORY": "OUT_OF_MEMORY"}
REASONS.update({"CANCELLED": "CANCELLED", "PREEMPTED": "LOST", "NODE_FAIL": "LOST"})
REASONS.update({"BOOT_FAIL": "LOST", "REVOKED": "LOST", "LAUNCH_FAILED": "LOST"})
# Slurm keeps such jobs pending, but none of them can run as it was asked for.
NEVER_RUNS = {"BadConstraints", "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit"}
NEVER_RUNS |= {"InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed"}
# What sbatch says when it was not the request that was wrong.
LATER = (
    *("socket timed out", "unable to contact slurm controller", "connection refused", "timeout"),
    *("zero bytes were transmitted", "temporarily", "not responding", "connect failure", "busy"),
    *("standby", "protocol authentication error", "munge", "communication", "submitjob"),
    *("connection timed out", "connection reset", "no route to host", "try again"),
    *("name or service not known", "configless"),
)


class Row(NamedTuple):
    """A job or array task as squeue or sacct tells it."""

    raw: int  # its own id, once it has one
    array: int  # the id that sbatch gave
    task: int  # its index in the array, or ALONE
    state: str
    reason: str
    comment: str = ""


class Options:
    """How a pool wants its jobs in Slurm. ValueError naming what is wrong."""

    def __init__(self, given: dict[str, Any]) -> None:
        """Read `--slurm`."""
        known = {"partition", "account", "qos", "flags", "poll_s", "conf", "bin", "array_max"}
        known |= {"account_grace_s", "file_grace_s", "gpus"}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ValueError(f"slurm has no option {', '.join(map(str, unknown))}")
        texts = {name: given.get(name) or "" for name in ("partition", "account", "qos")}
        flags = given.get("flags") or []
        bad = [name for name, value in texts.items() if not isinstance(value, str)]
        if bad or not isinstance(flags, list) or not all(isinstance(f, str) for f in flags):
            raise ValueError("slurm: partition, account, qos are words, flags a list of words")
        self.flags = [f"--{name}={value}" for name, value in texts.items() if value] + flags
        self.poll_s = max(0.1, float(given.get("poll_s") or 10.0))
        self.account_grace_s = float(given.get("account_grace_s", 120.0))
        self.file_grace_s = float(given.get("file_grace_s", 15.0))
        self.gpus = max(0, int(given.get("gpus") or 0))  # how many Slurm may give at once
        self.array_max = max(1, int(given.get("array_max") or ARRAY))
        self.conf, self.bin = str(given.get("conf") or ""), str(given.get("bin") or "")

    def environment(self, environ: dict[str, str]) -> dict[str, str]:
        """Return the environment of Slurm's commands, which its jobs inherit."""
        env = dict(environ)
        if self.conf:
            env["SLURM_CONF"] = self.conf
        if self.bin:
            env["PATH"] = f"{self.bin}:{env.get('PATH') or os.defpath}"
        return env


def sbatch(job: Job, indices: str, *, name: str, comment: str, folder: str) -> list[str]:
    """Return the call that submits an array of attempts like this one, or it alone."""
    words = ["sbatch", "--parsable", "--no-requeue", "--export=ALL", "--open-mode=append"]
    words += [f"--job-name={name}", f"--comment={comment}", "--chdir=" + folder]
    words += ["--input=/dev/null", "--output=" + folder.replace("%", "%%") + "/log"]
    words += ["--nodes=1", "--ntasks=1", f"--cpus-per-task={job.cores}"]
    if job.mem:
        words.append(f"--mem={-(-job.mem // 1024)}K")
    if math.isfinite(job.wall):  # Slurm counts in minutes; the runner is the one that is exact
        words.append(f"--time={minutes(job.wall)}")
    if gpus_of(job):
        words.append(f"--gres=gpu:{gpus_of(job)}")
    return words + ([f"--array={indices}"] if indices else [])


def shape(job: Job) -> tuple[Any, ...]:
    """Return what attempts of one array have in common."""
    wall = minutes(job.wall) if math.isfinite(job.wall) else 0
    return job.cores, job.mem, wall, gpus_of(job)


def gpus_of(job: Job) -> int:
    """Return the GPUs that were asked for; of the login node's it has none."""
    return int(job.spec.get("gpus") or 0)


def minutes(wall: float) -> int:
    """Return the time limit for Slurm, a minute above what the runner sees to."""
    return math.ceil(wall / 60) + 1


def ranges(indices: list[int]) -> str:
    """Return indices as --array wants them: 0-4,7."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def passing(said: str, status: int) -> bool:
    """Tell whether a command failed for a reason that goes away by itself."""
    return status in (126, 127) or status > 128 or any(word in said.lower() for word in LATER)


def indices(text: str) -> list[int]:
    """Return what ranges tell of, also "[0,2-5%3]" and "0-8:2"; what is cut off or junk is not."""
    found: list[int] = []
    for part in text.strip("[]").partition("%")[0].split(","):
        match = re.fullmatch(r"([0-9]{1,7})(?:-([0-9]{1,7})(?::([0-9]{1,7}))?)?", part)
        if match:
            first, last, step = (int(word or 0) for word in match.groups())
            found += range(first, max(first, last) + 1, max(1, step))
    return found


def rows_of_squeue(text: str) -> list[Row]:
    """Read lines in the form of ROW, one row for each task; what is none is left out."""
    rows = []
    for line in text.splitlines():
        words = line.split("|", 5)
        if len(words) == 6 and words[0].isdigit() and words[1].isdigit():
            for index in indices(words[2]) or [ALONE]:
                rows.append(Row(int(words[0]), int(words[1]), index, *words[3:]))
    return rows


def rows_of_sacct(text: str) -> list[Row]:
    """Read lines of JobID|JobIDRaw|State|ExitCode; `reason` is the exit code, as code:signal.

    A line may tell of many tasks that never ran: 10_[4-9]. Of a task that has just ended it may
    not tell the index yet.
    """
    rows = []
    for line in text.splitlines():
        words = line.split("|")
        array, _, index = words[0].partition("_")
        if len(words) == 4 and array.isdigit() and words[1].isdigit() and words[2].strip():
            for task in indices(index) or [ALONE]:
                state = words[2].split()[0]
                rows.append(Row(int(words[1]), int(array), task, state, words[3]))
    return rows


class Call:
    """One command that runs beside the runner's loop."""

    def __init__(self, runner: Any, argv: list[str], done: Callable[[Call], Any]) -> None:
        """Start it; `done` is called with this once it has ended, whatever became of it."""
        self.began, self.status, self.done = now(), 127, done
        self.runner, self.texts = runner, [bytearray(), bytearray()]
        self.deadline = self.began + CALL_S
        readers, writers = zip(*(os.pipe() for _ in range(2)))
        try:
            os.chdir(runner.home)
            words = ["/bin/sh", "-c", TELL, "sh", *argv]
            mark = marks.mark(runner.home)
            self.pid = launch(words, runner.slurm_env, writers[0], writers[1], mark=mark)
        finally:
            for fd in writers:
                os.close(fd)
        self.open = set(readers)
        runner.pids[self.pid] = None
        for text, fd in zip(self.texts, readers):
            os.set_blocking(fd, False)
            runner.attend(fd, lambda _, fd=fd, text=text: self.ready(fd, text))

    @property
    def out(self) -> str:
        """What it wrote."""
        return self.texts[0].decode(errors="replace")

    @property
    def said(self) -> str:
        """What it complained of."""
        return " ".join(self.texts[1].decode(errors="replace").split())[-1000:]

    def ready(self, fd: int, text: bytearray) -> None:
        """Take in what came; at the end of both it is over."""
        try:
            data = os.read(fd, 1 << 18)
        except BlockingIOError:
            return
        if data:
            text += data
            return
        del self.runner.handlers[fd]
        os.close(fd)
        self.open.discard(fd)
        if not self.open:
            whole, _, status = self.out.rpartition("remuda-status ")
            self.status = int(status) if status.strip().isdigit() else 255
            self.texts[0] = bytearray(whole.encode())
            self.done(self)

    def expire(self) -> None:
        """End it; its pipes end with it."""
        self.deadline = math.inf
        signal_process(self.pid, signal.SIGKILL)


def end_all(name: str, options: Options, environ: dict[str, str], *, wait_s: float) -> None:
    """Cancel every Slurm job of a name, and see them gone if `wait_s`; RuntimeError if they stay."""
    if not name:  # it never submitted anything
        return
    env, deadline = options.environment(environ), time.monotonic() + wait_s
    user = str(os.getuid())
    while True:
        said = _run(["scancel", "--user=" + user, "--name=" + name], env)
        left = _run(
            ["squeue", "--noheader", "--user=" + user, "--name=" + name, "--format=%A"], env
        )
        if not left.returncode and not left.stdout.strip():
            return
        if time.monotonic() > deadline:
            if wait_s:
                complaint = (said.stderr or left.stderr).decode(errors="replace").strip()[-500:]
                raise RuntimeError(
                    f"the Slurm jobs {name} do not end: {complaint or 'still there'}"
                )
            return
        time.sleep(0.1)  # between two looks at a condition with a deadline


def _run(words: list[str], env: dict[str, str]) -> Any:
    try:
        return subprocess.run(
            words, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=30.0
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 127, b"", str(error).encode())
