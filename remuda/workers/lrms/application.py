"""A job as a `Resource` knows it: what is to be run, and the record of its run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from remuda.errors import BadInput, IllegalTransition
from remuda.models.states import JOB_EDGES, JobState, Reason
from remuda.spec import JobSpec
from remuda.spec_files import name_inside

__all__ = ["Application", "Execution", "PseudoSignal"]

OVER = (JobState.TERMINATING, JobState.TERMINATED)


class PseudoSignal(IntEnum):
    """What stands in a return code for an end that was no process's own."""

    LOST = 120
    CANCELLED = 121
    REMOTE_KILL = 122
    DATA_STAGING_FAILURE = 123
    REMOTE_ERROR = 124
    SUBMISSION_FAILED = 125


PSEUDO = {
    Reason.LOST: PseudoSignal.LOST,
    Reason.CANCELLED: PseudoSignal.CANCELLED,
    Reason.WALLTIME: PseudoSignal.REMOTE_KILL,
    Reason.OUT_OF_MEMORY: PseudoSignal.REMOTE_KILL,
    Reason.STAGING: PseudoSignal.DATA_STAGING_FAILURE,
    Reason.SUBMISSION: PseudoSignal.SUBMISSION_FAILED,
}
GENUINE = (Reason.OK, Reason.NONZERO, Reason.SIGNALLED)

_highest = 0


def new_number() -> int:
    """Return a number that grows, also from one process to the next."""
    global _highest
    _highest = max(_highest + 1, time.time_ns() // 1000)
    return _highest


@dataclass
class Execution:
    """How a run is going, and how it ended. `state` moves along the edges of a job only.

    `exit_code` and `signal` are the command's own, `reason` says why it ended, None while it has
    not; `message` says it in words. `outputs` are the files that were there at the end, with their
    sizes; `missing` those that were not; `saved` where they were copied to.
    """

    job_id: int = field(default_factory=new_number)
    attempt_id: int = field(default_factory=new_number)
    epoch: int = 1
    resource: str = ""  # the name of the one it was given to
    accepted: bool = False  # the resource has said that it has it
    freed: bool = False
    exit_code: int | None = None
    signal: int | None = None
    reason: Reason | None = None
    message: str = ""
    outputs: dict[str, int] = field(default_factory=dict)
    executables: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    saved: dict[str, Path | str] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=dict)
    _state: JobState = JobState.NEW
    _marks: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False)

    @property
    def state(self) -> JobState:
        """Where the job is on its way."""
        return self._state

    @state.setter
    def state(self, new: JobState) -> None:
        new = JobState(new)
        if new is self._state:
            return
        if new not in JOB_EDGES[self._state]:
            allowed = ", ".join(JOB_EDGES[self._state]) or "nothing: it is final"
            raise IllegalTransition(
                f"a job cannot go from {self._state} to {new}", hint=f"possible: {allowed}"
            )
        self._state = new

    @property
    def over(self) -> bool:
        """Whether its command has ended."""
        return self._state in OVER

    @property
    def returncode(self) -> int | None:
        """The end in one number: (exit code << 8) | signal, a PseudoSignal where none is genuine.

        None while it has not ended.
        """
        if self.reason is None:
            return None
        pseudo = PSEUDO.get(self.reason, PseudoSignal.REMOTE_ERROR)
        signal = (self.signal or 0) if self.reason in GENUINE else int(pseudo)
        return ((self.exit_code or 0) << 8) | signal

    def advance(self, state: JobState) -> None:
        """Move to what the resource says, through SUBMITTED if the job was still NEW."""
        if self._state is JobState.NEW and state not in (JobState.NEW, JobState.TERMINATED):
            self.state = JobState.SUBMITTED
        self.state = state

    def end(self, reason: Reason, message: str = "", *, final: bool = True) -> None:
        """Record an end of which there is no entry."""
        self.reason, self.message = reason, message
        self.advance(JobState.TERMINATED if final else JobState.TERMINATING)

    def record(self, entry: dict[str, Any]) -> None:
        """Record the exit entry of a runner: TERMINATING, or TERMINATED if nothing is left of it."""
        self.exit_code, self.signal = entry.get("st"), entry.get("sig")
        self.outputs = dict(entry.get("f", {}))
        self.executables = list(entry.get("fx", []))
        self.missing = list(entry.get("miss", []))
        names = {"u": "user_s", "sy": "system_s", "rss": "rss_bytes", "peak": "peak_bytes"}
        names |= {"rd": "read_bytes", "wr": "written_bytes"}
        self.usage = {name: entry[key] for key, name in names.items() if entry.get(key) is not None}
        if entry.get("s") is not None and entry.get("x") is not None:
            self.usage["wall_s"] = entry["x"] - entry["s"]
        reason = Reason(entry["why"])
        gone = reason in (Reason.LOST, Reason.CANCELLED)
        self.end(reason, entry.get("msg", ""), final=gone)


class Application:
    """One job for a Resource: a JobSpec, and in `execution` the record of its run.

    `stdout` and `stderr` name the files `get_results` saves the streams to; without a name they are
    left out. With the spec's `join_output` there is no stderr.
    """

    def __init__(self, spec: JobSpec, *, stdout: str = "", stderr: str = "") -> None:
        """Be NEW. Raises BadInput for what a Resource alone cannot do."""
        if spec.after:
            raise BadInput(
                "a Resource knows of no other jobs, so a job for it cannot have `after`",
                hint="submit it to a pool",
            )
        self.spec = spec
        self.stdout = name_inside("stdout", stdout) if stdout else ""
        self.stderr = name_inside("stderr", stderr) if stderr and not spec.join_output else ""
        locals_ = [output.local for output in spec.output_files]
        for stream in filter(None, (self.stdout, self.stderr)):
            if locals_.count(stream) or self.stdout == self.stderr:
                raise BadInput(f"{stream!r} would be written twice")
        self.execution = Execution()

    def __repr__(self) -> str:
        name = self.spec.name or self.spec.words[0]
        return f"<Application {name!r:.60}, {self.execution.state}>"

    def again(self) -> Application:
        """Return a NEW application for another attempt at this job; the resource ends this one."""
        other = Application(self.spec, stdout=self.stdout, stderr=self.stderr)
        old = self.execution
        other.execution = Execution(job_id=old.job_id, epoch=old.epoch + 1)
        return other
