"""What a Resource copies from its VM: the results of a job, and pieces of its files meanwhile."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from remuda.checks import whole
from remuda.errors import DataStagingError, OutputNotAvailable
from remuda.files import telling, written_aside
from remuda.models.states import JobState, Reason
from remuda.spec_files import destination, is_url, output_row
from remuda.stores import push, size_of
from remuda.workers.backends.base import Backend, VmAddress
from remuda.workers.channel import Channel
from remuda.workers.lrms.application import Application
from remuda.workers.lrms.link import Deadline
from remuda.workers.lrms.saving import Saver

__all__ = ["Copier", "check"]

PIECE = 1 << 20


def check(app: Application) -> None:
    """Raise OutputNotAvailable if there is nothing of this job to be had."""
    run = app.execution
    if run.freed:
        raise OutputNotAvailable(f"{app} was freed: nothing of it is kept")
    if run.state in (JobState.NEW, JobState.SUBMITTED, JobState.UNKNOWN):
        raise OutputNotAvailable(f"{app} has no output yet")
    if run.reason is Reason.LOST or not run.accepted:
        raise OutputNotAvailable(f"{app} left nothing: {run.message or 'it never ran'}")


class Copier:
    """Copies by one channel, until a deadline."""

    def __init__(
        self, backend: Backend, vm: VmAddress, channel: Channel, deadline: Deadline
    ) -> None:
        """Take what it works with."""
        self._backend, self._vm = backend, vm
        self._channel, self._deadline = channel, deadline

    def get(self, app: Application, directory: Path, *, overwrite: bool) -> dict[str, Path | str]:
        """Save the results; see `Resource.get_results`."""
        run = app.execution
        saver = Saver(directory, overwrite=overwrite, marks=run._marks)
        over = run.over
        wanted = [(f"./{name}", to) for name, to in self._files(app, over=over)]
        wanted += [(name, to) for name, to in _streams(app) if to]
        plan: list[tuple[str, Path | str]] = [
            (remote, to if is_url(to) else saver.target(to)) for remote, to in wanted
        ]
        for _, target in plan:
            if isinstance(target, Path):
                saver.check(target)
            elif not overwrite and target not in run.saved.values():
                _check_url(target)
        saved: dict[str, Path | str] = {}
        for remote, target in plan:
            self._deadline.left_s()
            name = remote.removeprefix("./")
            try:
                self._save(app, remote, target, saver)
            except OutputNotAvailable:
                if not over:
                    continue  # gone again, or not yet there: it still runs
                self._miss(app, name)
            else:
                saved[name] = run.saved[name] = target
        if over:
            run.state = JobState.TERMINATED
        return saved

    def _save(self, app: Application, remote: str, target: Path | str, saver: Saver) -> None:
        fetch = self._fetch(app, remote)
        name = remote.removeprefix("./")
        if isinstance(target, Path):
            executable = remote != name and name in app.execution.executables
            saver.save(target, fetch, executable=executable)
        elif app.execution.saved.get(name) != target or not app.execution.over:
            with tempfile.TemporaryDirectory(prefix="remuda-") as folder:
                aside = Path(folder) / "file"
                fetch(aside)
                push(aside, target)

    def _miss(self, app: Application, name: str) -> None:
        """Record that a file which was there at the end is there no more."""
        run = app.execution
        if name not in run.missing:
            run.missing.append(name)
        if run.reason is Reason.OK:
            run.reason, run.message = Reason.STAGING, f"missing output: {name}"

    def _files(self, app: Application, *, over: bool) -> list[tuple[str, str]]:
        """Return (name, local name) of the files to save."""
        outputs = app.spec.output_files
        if over:
            names = list(app.execution.outputs)
        elif outputs:
            a = app.execution.attempt_id
            names = [row[0] for row in self._channel.request("files", a=a)["files"]]
        else:
            return []
        rows = [output_row(output) for output in outputs]
        found = [(name, destination(name, rows)) for name in names]
        return [(name, to) for name, to in found if to is not None]

    def _fetch(self, app: Application, remote: str) -> Callable[[Path], int]:
        a = app.execution.attempt_id
        return lambda path: self._backend.fetch(self._channel, self._vm, a, remote, path)

    def peek(
        self,
        app: Application,
        remote: str,
        local: str | Path | BinaryIO,
        *,
        offset: int,
        size: int | None,
    ) -> int:
        """Copy a piece of a file; see `Resource.peek`."""
        whole("offset", offset, least=-(1 << 62), most=1 << 62)
        if size is not None:
            whole("size", size, least=0, most=1 << 62)
        if isinstance(local, (str, Path)):
            path = Path(local)
            # Asked first: where there is nothing to be had, the file that is there stays.
            first = self._piece(app, remote, offset, size)
            with written_aside(path, what=str(path)) as file:
                return self._copy(app, remote, file, first, size)
        return self._copy(app, remote, local, self._piece(app, remote, offset, size), size)

    def _piece(
        self, app: Application, remote: str, offset: int, size: int | None
    ) -> tuple[bytes, int, int]:
        a = app.execution.attempt_id
        if size == 0:
            _, at, total = self._backend.peek(
                self._channel, self._vm, a, remote, offset=offset, size=1
            )
            return b"", at, total
        most = PIECE if size is None else min(size, PIECE)
        return self._backend.peek(self._channel, self._vm, a, remote, offset=offset, size=most)

    def _copy(
        self,
        app: Application,
        remote: str,
        file: BinaryIO,
        first: tuple[bytes, int, int],
        size: int | None,
    ) -> int:
        data, at, total = first
        done = 0
        while data:
            with telling("the local file"):
                file.write(data)
            done += len(data)
            at += len(data)
            left = None if size is None else size - done
            if at >= total or left == 0:
                break
            data, at, _ = self._piece(app, remote, at, left)
        return done


def _check_url(url: str) -> None:
    """Raise DataStagingError if something is there."""
    try:
        size_of(url)
    except OutputNotAvailable:
        return
    raise DataStagingError(f"{url} is already there", hint="overwrite=True replaces what is there")


def _streams(app: Application) -> list[tuple[str, str]]:
    return [("stdout", app.stdout), ("stderr", app.stderr)]
