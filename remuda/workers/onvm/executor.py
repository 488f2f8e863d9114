"""Running a VM's jobs as processes, seeing them end, and leaving nothing of them behind.

Every step of a job (prologue, command, epilogue) runs in its own process group, in the job's
folder; its output comes through pipes. All processes of a job wear its mark. The runner is the
parent of its jobs, and by `PR_SET_CHILD_SUBREAPER` of whatever they orphan.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
from typing import Any

from remuda.workers.onvm import marks
from remuda.workers.onvm.attempts import Attempts
from remuda.workers.onvm.job import NEVER, Job
from remuda.workers.onvm.limits import group_of
from remuda.workers.onvm.processes import (
    environment,
    launch,
    members,
    now,
    signal_process,
    signal_tree,
    wait_for,
)

KILL_S = 5.0  # between TERM and KILL when the walltime is over
PASSES = 50  # looks for processes to stop; each finds what was forked since the last
EXIT_CODES = {errno.ENOENT: 127, errno.EACCES: 126, errno.ENOEXEC: 126, errno.ENOTDIR: 126}


class Unstartable(Exception):
    """A program could not be started; says why, and what a shell would make of it."""

    def __init__(self, error: Exception, program: str) -> None:
        """Take what the system said."""
        self.code = EXIT_CODES.get(getattr(error, "errno", 0) or 0)
        what = getattr(error, "strerror", None) or str(error)
        super().__init__(f"{what}: {program:.200}" if self.code else what)


class Executor(Attempts):
    """The jobs of one VM as processes. Nothing here blocks but `kill_everything`."""

    def __init__(self, home: str, **options: Any) -> None:
        """Take over the home and what its jobs orphan."""
        self.children = -1
        with contextlib.suppress(OSError, AttributeError):
            if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0:  # PR_SET_CHILD_SUBREAPER
                path = f"/proc/self/task/{os.getpid()}/children"
                self.children = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        super().__init__(home, **options)
        self.limits.cgroups.enter()

    def tick(self) -> None:
        """End the jobs whose time is over."""
        current = now()
        for job in [job for job in self.pids.values() if job and job.deadline <= current]:
            if job.why:
                self.kill(job)
            else:
                self.terminate(job, "WALLTIME", KILL_S)

    # ---- starting

    def spawn(self, job: Job) -> None:
        """Start the first step of a job, or report why not."""
        if job.why:
            return None if self.vanished() else self.end(job, job.why, message=job.message)
        try:
            if not job.folder:
                job.folder = self.boxes.make(job.a) if job.outs or job.cwd else self.boxes.empty()
            job.out = self.capture(job, ".out")
            job.err = None if job.join else self.capture(job, ".err")
            self.limits.open(job)
            self.enter(job)
        except OSError as error:
            message = f"{error.strerror or error}: {job.folder:.200}"
            return None if self.vanished() else self.end(job, "STAGING", message=message)
        job.mark, job.started = marks.mark(self.home, job.a), now()
        try:
            self.launch(job, "prologue" if job.prologue else "command")
        except Unstartable as error:
            if self.vanished():
                return None
            message = ("the prologue: " if job.prologue else "") + str(error)
            why = "NONZERO" if error.code else "SUBMISSION"
            return self.end(job, why, message=message, code=error.code)
        job.state, job.deadline = "running", job.due()
        self.entry(t="start", a=job.a, e=job.e, at=job.started, pid=job.pid)
        self.on_start(job)
        return None

    def enter(self, job: Job) -> None:
        """Go where the job's steps are to run."""
        path = f"{job.folder}/{job.cwd}" if job.cwd else job.folder
        if job.cwd:
            if not os.path.realpath(path).startswith(job.folder + "/"):
                raise OSError(errno.EPERM, f"the working directory {job.cwd} leads out of")
            os.makedirs(path, 0o700, exist_ok=True)
        os.chdir(path)

    def environment_of(self, job: Job) -> dict[str, str]:
        """Return the environment of all the job's steps."""
        env = {**self.environ, **self.limits.environment(job), **job.env}
        env["REMUDA_JOB_ID"], env["REMUDA_ATTEMPT_ID"] = str(job.j), str(job.a)
        env["REMUDA_EPOCH"], env["REMUDA_CORES"] = str(job.e), str(job.cores)
        env["REMUDA_VM"], env["REMUDA_VM_HOME"] = self.name, self.home
        return env

    def launch(self, job: Job, step: str, **more: str) -> None:
        """Start a step; Unstartable if it cannot be."""
        argv = {"prologue": job.prologue, "epilogue": job.epilogue}.get(step, job.argv)
        env, prepare = self.environment_of(job), self.limits.preparer(job)
        env.update(more)
        out = job.out.inner if job.out else -1
        err = job.err.inner if job.err else out
        try:
            pid = launch(argv, env, out, err, mark=job.mark, prepare=prepare)
        except (OSError, ValueError) as error:
            raise Unstartable(error, argv[0]) from None
        job.step, job.pid, self.pids[pid] = step, pid, job
        if step == "epilogue" or (step == "command" and not job.epilogue):
            for stream in (job.out, job.err):  # no later step needs them
                if stream:
                    stream.handed_over()

    def go_on(self, job: Job, step: str, **more: str) -> None:
        """Start the next step of a job; Unstartable if it cannot be."""
        try:
            self.enter(job)
        except OSError as error:
            raise Unstartable(error, job.folder) from None
        self.launch(job, step, **more)
        self.ledger.add(t="step", a=job.a, pid=job.pid)
        if job.suspended:
            self.freeze(job)

    # ---- ending

    def reap(self) -> None:
        """See who ended; whatever an ended step left in its group is killed."""
        ended = False
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                found = None
            if found is None:
                break
            ended, job = True, self.pids.get(found.si_pid)
            if job:  # first its group: once it is reaped, its number may be anyone's
                with contextlib.suppress(OSError):
                    os.killpg(job.pid, signal.SIGKILL)
            _, status, usage = os.wait4(found.si_pid, 0)
            if job:
                del self.pids[found.si_pid]
                self.exited(job, status, usage)
            elif found.si_pid in self.pids:
                del self.pids[found.si_pid]
                self.helper_ended(found.si_pid, status)
        if ended:
            self.sweep()

    def helper_ended(self, pid: int, status: int) -> None:
        """Hear that a process of the runner's own ended; for the subclass."""

    def orphans(self) -> list[int]:
        """Return our children that are not ours: descendants of jobs whose parent ended."""
        text = os.pread(self.children, 1 << 20, 0) if self.children >= 0 else b""
        return [pid for pid in map(int, text.split()) if pid not in self.pids]

    def sweep(self) -> None:
        """Kill the orphans of ended jobs, also those that moved to a session of their own."""
        self.limits.cgroups.tidy()
        orphans = self.orphans()
        if not orphans:
            return
        running = {job.mark: str(job.a).encode() for job in self.pids.values() if job}
        attempts, own = set(running.values()), marks.mark(self.home)
        kept = {*running, own, marks.mark(self.home, marks.PREPARATION)}
        for pid in orphans:
            mark = marks.mark_of(pid)
            if marks.same_home(mark, own):
                doomed = mark not in kept
            else:  # it took its mark off: what does its environment say?
                attempt = environment(pid, b"REMUDA_ATTEMPT_ID")
                doomed = not running or bool(attempt and attempt not in attempts)
            if doomed:
                signal_process(pid)

    def exited(self, job: Job, status: int, usage: Any) -> None:
        """Go on with the job's next step, or report how it ended."""
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        how = f"exit code {code}" if number is None else f"signal {number}"
        job.usage.add(usage)
        if job.step == "epilogue":
            if job.result[0] == 0 and code != 0:
                code = 128 + (number or 0) if code is None else code
                job.result = code, None, f"the epilogue failed: {how}"
            self.finish(job)
        elif job.step == "command":
            self.command_ended(job, code, number)
        elif code == 0 and not job.why:
            try:
                self.go_on(job, "command")
            except Unstartable as error:
                self.command_ended(job, error.code or 126, None, str(error))
        else:
            message = f"the prologue failed: {how}" if code != 0 else ""
            job.result = None if code == 0 else code, number, message
            self.finish(job)

    def command_ended(
        self, job: Job, code: int | None, number: int | None, message: str = ""
    ) -> None:
        """Run the epilogue, if there is one and time for it; else report the end."""
        job.result = code, number, message
        if job.epilogue and not job.killed:
            told = {
                "REMUDA_EXIT_CODE": "" if code is None else str(code),
                "REMUDA_SIGNAL": "" if number is None else str(number),
            }
            try:
                return self.go_on(job, "epilogue", **told)
            except Unstartable as error:
                if code == 0:
                    job.result = error.code or 126, None, f"the epilogue: {error}"
        return self.finish(job)

    def finish(self, job: Job) -> None:
        """Report how a job ended; being told to is the reason only if it mattered."""
        code, number, message = job.result
        why = "OK" if code == 0 else "NONZERO" if number is None else "SIGNALLED"
        self.limits.measure(job)
        if job.why == "WALLTIME" or (job.why and code != 0):
            why, message = job.why, job.message
        elif code != 0:
            lacked = self.limits.want_of_memory(job)
            why, message = ("OUT_OF_MEMORY", lacked) if lacked else (why, message)
        self.end(job, why, message=message, code=code, signal=number, usage=job.usage)

    def terminate(self, job: Job, why: str, grace: float) -> None:
        """End a job early: at once if it has not started; else TERM, and KILL after the grace."""
        if not job.held:
            self.end(job, why)
            return
        if why == "WALLTIME" and not job.why:
            job.message = f"exceeded its walltime of {job.wall:g} s"
        if not job.pid:
            job.why = job.why or why  # being staged; seen when that is over
        elif self.has_ended(job):
            job.deadline = NEVER
        else:
            last = job.deadline if job.why else NEVER
            job.why, job.deadline = job.why or why, min(now() + grace, last)
            if grace > 0:
                signal_tree(job.pid, job.mark, signal.SIGTERM)
                self.thaw(job)
            else:
                self.kill(job)
            self.resumed(job)

    def has_ended(self, job: Job) -> bool:
        """Tell whether the job's last step ended and only waits to be reaped."""
        if job.step == "prologue" or (job.step == "command" and job.epilogue):
            return False
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, job.pid, options) is not None

    def kill(self, job: Job) -> None:
        """Kill all of a job; no step of it begins any more."""
        job.killed, job.deadline = True, NEVER
        if job.group:
            job.group.kill()
        signal_tree(job.pid, job.mark, signal.SIGKILL)

    def kill_everything(self) -> None:
        """Kill the jobs and all they started; returns when they are gone."""
        for pid, job in self.pids.items():
            if job and job.group:
                job.group.kill()
            signal_process(pid)

        def gone() -> bool:
            for pid in self.orphans():
                signal_process(pid)
            try:
                while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
                    pass
            except ChildProcessError:
                return True
            return False

        wait_for(gone, 10.0)

    # ---- suspending

    def suspend(self, job: Job) -> None:
        """Stop all of a running job, and the clock of its walltime; harmless when repeated."""
        if not job.suspended:
            job.stopped_at, job.deadline = now(), NEVER
            self.freeze(job)
            self.on_state(job)

    def resume(self, job: Job) -> None:
        """Let a suspended job go on; harmless when repeated."""
        if job.suspended:
            self.thaw(job)
            self.resumed(job)
            job.deadline = job.due()

    def resumed(self, job: Job) -> None:
        """Take note that a job is not suspended any more."""
        if job.suspended:
            job.stopped_s, job.stopped_at = job.stopped, 0.0
            self.on_state(job)

    def freeze(self, job: Job) -> None:
        """Stop all processes of a job, also those it forks meanwhile."""
        group = group_of(job)
        if group and group.freeze():
            return
        signal_process(job.pid, signal.SIGSTOP)
        stopped: set[int] = set()
        for _ in range(PASSES):
            more = set(members(job.mark)) - stopped
            if not more:
                return
            for pid in more:
                signal_process(pid, signal.SIGSTOP, group=False)
            stopped |= more

    def thaw(self, job: Job) -> None:
        """Let all processes of a job run."""
        group = group_of(job)
        if group:
            group.thaw()
        signal_tree(job.pid, job.mark, signal.SIGCONT)
