"""The seam between Remuda and the resources that run jobs.

A backend speaks to a VM over a channel; the unit of work is a batch of attempts. What every kind
has in common, the runner's protocol, is written here once: a kind says how to reach a VM and its
files.
"""

from __future__ import annotations

import base64
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from remuda.errors import DataStagingError
from remuda.workers.channel import Channel

__all__ = ["Backend", "InputFile", "OutputFile", "StartJob", "VmAddress"]

CHUNK = 500  # attempts in one message
PIECE = 1 << 20  # bytes in one answer to `peek`
NO_SOURCE = "!"  # in place of an input's path: it cannot be had, the rest says why


@dataclass(frozen=True, slots=True)
class VmAddress:
    """Where a VM is; `address` is what its provider said."""

    vm_id: int
    name: str
    kind: str
    address: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to copy into the sandbox as `name`, from a `file://` URL or a path."""

    name: str
    url: str
    sha256: str = ""
    size: int = 0
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file the job is to leave in its sandbox; a pattern, a directory ("d/") or "**" for many."""

    name: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class StartJob:
    """One attempt to start. A None limit is no limit."""

    attempt_id: int
    job_id: int
    epoch: int
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # it may hold secrets
    inputs: tuple[InputFile, ...] = ()
    outputs: tuple[OutputFile, ...] = ()
    cores: int = 1
    memory_bytes: int | None = None
    walltime_s: float | None = None
    gpus: int = 0
    pin_cpus: bool = False
    workdir: str = ""
    prologue: tuple[str, ...] | None = None
    epilogue: tuple[str, ...] | None = None
    follow: bool = False
    join: bool = False
    output_limit_bytes: int | None = None


@contextmanager
def atomic_target(target: Path) -> Iterator[BinaryIO]:
    """Give a file to write that becomes `target` at the end, if all went well."""
    new = target.with_name(f".{target.name[:200]}.{uuid.uuid4().hex[:12]}.part")
    try:
        file = open(new, "xb")  # noqa: SIM115
    except OSError as error:
        raise DataStagingError(f"cannot write {target}: {error.strerror}") from error
    try:
        with file:
            yield file
        new.replace(target)
    except OSError as error:
        raise DataStagingError(f"cannot write {target}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)


class Backend(ABC):
    """Runs jobs on VMs of one kind. Has no state of its own; safe to use from many threads."""

    kind: ClassVar[str]
    over_network = False  # its VMs are machines that come up by themselves: they are waited for

    @abstractmethod
    def connect(
        self,
        vm: VmAddress,
        *,
        watch: bool = False,
        since: int = 0,
        on_push: Callable[[Channel, dict[str, Any]], None] | None = None,
        on_close: Callable[[Channel], None] | None = None,
        timeout_s: float = 10.0,
    ) -> Channel:
        """Open a channel to the VM's runner; its `hello` says what the runner is.

        With `watch` this becomes the one channel that is pushed starts and exits, first all those
        numbered above `since`. Raises VmUnreachable if no runner answers: `revive` may help.
        """

    def install(  # noqa: B027 - optional
        self, vm: VmAddress, arguments: Sequence[str], *, timeout_s: float = 60.0
    ) -> None:
        """Bring a runner to a VM that was just made, and start it; harmless if one serves there.

        `arguments` as `serve_arguments` has them. Raises VmUnreachable while the VM does not answer,
        AuthError if it does not let us in, or is another than it should be, NoResources if it has
        no python3. By default there is nothing to do: its provider has started the runner.
        """

    @abstractmethod
    def revive(self, vm: VmAddress, *, timeout_s: float = 30.0) -> None:
        """Start the VM's runner if it is dead; harmless if it lives.

        Attempts the dead one left open are reported LOST, and nothing of them runs any more when
        this returns. Raises VmUnreachable if the VM itself is gone.
        """

    @abstractmethod
    def source(self, file: InputFile, vm: VmAddress) -> str:
        """Return an absolute path on the VM that has the file's content, or NO_SOURCE and why not.

        Must not fail for one file, which would fail its whole batch: NO_SOURCE, or a path that is
        not there, makes that one attempt end with the reason STAGING.
        """

    def submit_jobs(
        self, channel: Channel, vm: VmAddress, jobs: Sequence[StartJob], *, floor: int
    ) -> dict[int, str]:
        """Have attempts started, first come first served; returns the state of each.

        The states are "queued", "running", "exited" and "stale" (recalled, freed, replaced, or an
        unknown one below `floor`: it is not started and never will be). Repeating a call starts
        nothing twice. No attempt below `floor` may be new.
        """
        states: dict[int, str] = {}
        for i in range(0, len(jobs), CHUNK):
            items = [self._item(job, vm) for job in jobs[i : i + CHUNK]]
            answer = channel.request("start", floor=floor, jobs=items)
            states.update({int(a): state for a, state in answer["states"].items()})
        return states

    def post_jobs(
        self, channel: Channel, vm: VmAddress, jobs: Sequence[StartJob], *, floor: int
    ) -> None:
        """Have attempts started like `submit_jobs`, without waiting for the answer.

        For the quick way; whoever uses it looks later for attempts of which no news came.
        """
        for i in range(0, len(jobs), CHUNK):
            items = [self._item(job, vm) for job in jobs[i : i + CHUNK]]
            channel.send("start", floor=floor, jobs=items)

    def cancel_jobs(
        self, channel: Channel, vm: VmAddress, attempt_ids: Iterable[int], *, grace_s: float = 5.0
    ) -> list[int]:
        """End attempts: TERM, and KILL after the grace. Each ends by an exit entry, as ever.

        Returns those the runner does not know; those that have ended are left as they are.
        """
        answer = channel.request("cancel", a=list(attempt_ids), grace=grace_s)
        return list(answer["unknown"])

    def recall_jobs(self, channel: Channel, vm: VmAddress, attempt_ids: Iterable[int]) -> list[int]:
        """Take back what has not begun; returns those attempts, which will never start there."""
        return list(channel.request("recall", a=list(attempt_ids))["recalled"])

    def peek(
        self,
        channel: Channel,
        vm: VmAddress,
        attempt_id: int,
        name: str,
        *,
        offset: int = 0,
        size: int | None = None,
    ) -> tuple[bytes, int, int]:
        """Return a piece of a file, the offset it begins at, and the size of the whole.

        `name` is "stdout", "stderr" or a file of the sandbox ("./stdout": the file of that name). A
        negative offset counts from the end. At most 4 MiB at once. OutputNotAvailable if there is
        no such file, or the attempt was freed.
        """
        answer = channel.request("peek", a=attempt_id, file=name, offset=offset, size=size)
        return base64.b64decode(answer["data"]), int(answer["at"]), int(answer["size"])

    def fetch(
        self,
        channel: Channel,
        vm: VmAddress,
        attempt_id: int,
        name: str,
        target: BinaryIO | Path,
    ) -> int:
        """Copy a whole file of an exited attempt (see `peek`) to the target; returns its size.

        A path is written under another name and then renamed, so it is there whole or not at all.
        What an open file holds already is gone on with, or replaced. Raises OutputNotAvailable, or
        DataStagingError if the target cannot be written.
        """
        if isinstance(target, Path):
            with atomic_target(target) as file:
                return self._copy_out(channel, vm, attempt_id, name, file)
        return self._copy_out(channel, vm, attempt_id, name, target)

    def free(self, channel: Channel, vm: VmAddress, attempt_ids: Iterable[int]) -> None:
        """Delete what exited attempts left on the VM; harmless when repeated or unknown."""
        channel.request("free", a=list(attempt_ids))

    def _copy_out(
        self, channel: Channel, vm: VmAddress, attempt_id: int, name: str, file: BinaryIO
    ) -> int:
        empty(file)
        done, whole = 0, -1
        while True:
            data, at, size = self.peek(channel, vm, attempt_id, name, offset=done, size=PIECE)
            if at != done or whole not in (-1, size) or not (data or done >= size):
                raise DataStagingError(f"{name!r} of attempt {attempt_id} changes while it is read")
            whole = size
            try:
                file.write(data)
            except OSError as error:
                raise DataStagingError(f"cannot write {name!r}: {error}") from error
            done += len(data)
            if done >= size:
                return done

    def _item(self, job: StartJob, vm: VmAddress) -> dict[str, Any]:
        return {
            "a": job.attempt_id,
            "j": job.job_id,
            "e": job.epoch,
            "c": job.command,
            "env": dict(job.env),
            "in": [(file.name, self.source(file, vm), file.mode) for file in job.inputs],
            "out": [(file.name, file.optional) for file in job.outputs],
            "cores": job.cores,
            "mem": job.memory_bytes,
            "wall": job.walltime_s,
            "follow": job.follow,
            "join": job.join,
            "limit": job.output_limit_bytes,
            **{key: value for key, value in _seldom(job).items() if value},
        }


def empty(file: BinaryIO) -> None:
    """Give up what came of a file before."""
    if file.seekable() and file.seek(0, os.SEEK_END):
        file.seek(0)
        file.truncate()


def _seldom(job: StartJob) -> dict[str, Any]:
    """Return the fields few jobs have; left out when empty, to keep messages short."""
    return {
        "gpus": job.gpus,
        "pin": job.pin_cpus,
        "cwd": job.workdir,
        "pro": job.prologue,
        "epi": job.epilogue,
    }
