"""How a job ended and what it left."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remuda.errors import AlreadyExists, DataStagingError, JobFailed
from remuda.models import outputs as models
from remuda.spec import INDEX

if TYPE_CHECKING:
    from remuda.client.context import Context

_TAIL_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Usage:
    """What the last attempt used; None where it is not known (it never started, or was lost)."""

    wall_s: float | None
    user_s: float | None
    system_s: float | None
    max_rss_bytes: int | None


class Result:
    """How a job ended. `outputs`: its declared files by name, those that are there."""

    def __init__(self, record: FinalRecord, outputs: Mapping[str, Path]) -> None:
        """Made by `Job.result`."""
        row = record.row
        self.job_id: int = row["id"]
        self.exit_code: int | None = row["exit_code"]
        self.signal: int | None = row["signal"]
        self.reason: str = row["reason"]
        self.usage = Usage(row["wall_s"], row["user_s"], row["system_s"], row["max_rss_bytes"])
        self.outputs = dict(outputs)
        self._record = record

    @property
    def stdout(self) -> bytes:
        """What the command wrote to stdout."""
        return self._record.stream("stdout")

    @property
    def stderr(self) -> bytes:
        """What the command wrote to stderr; empty for a job with `join_output`."""
        return self._record.stream("stderr")

    def __repr__(self) -> str:
        return f"<Result of job {self.job_id}: {ending(self._record.row)}>"


class FinalRecord:
    """A job's terminal row with what its last attempt left; streams are fetched when asked for."""

    __slots__ = ("_context", "_streams", "row")

    def __init__(self, context: Context, row: Mapping[str, Any]) -> None:
        """`row`: one of `models.outputs.final_records`."""
        self._context = context
        self.row = row
        self._streams: dict[str, bytes] = {}

    def stream(self, name: str) -> bytes:
        """Return all that was kept of `stdout` or `stderr`."""
        if name not in self._streams:
            self._streams[name] = self._read(name, 0)
        return self._streams[name]

    def tail(self, name: str, size: int) -> bytes:
        """Return the last `size` bytes of a stream."""
        if name in self._streams:
            return self._streams[name][-size:]
        return self._read(name, -size)

    def failure(self) -> JobFailed:
        """Return the error that tells how the job failed."""
        row = self.row
        tail = self.tail("stderr", _TAIL_BYTES).decode(errors="replace")
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        name = f" {row['name']!r}" if row["name"] else ""
        said = f": {lines[-1][:200]}" if lines else ""
        return JobFailed(
            f"job {row['id']}{name} {ending(row)}{said}",
            job_id=row["id"],
            reason=row["reason"],
            exit_code=row["exit_code"],
            signal=row["signal"],
            attempt=row["epoch"],
            stderr_tail=tail,
        )

    def outputs(self) -> dict[str, Path]:
        """Bring the declared files to the job's `output_dir`, replacing what is there; return them.

        Without an `output_dir` they are where the storage keeps them, if that is on this machine,
        else they are copied under the data directory.
        """
        files = self._files()
        if not files:
            return {}
        if self.row["output_dir"] is not None:
            return self.bring(Path(self._fill(self.row["output_dir"])), overwrite=True)
        storage = self._context.storage
        here = {name: storage.local_path(file["url"]) for name, file in files.items()}
        found = {name: path for name, path in here.items() if path is not None}
        if len(found) == len(files):
            return found
        job = self._context.settings.data_dir / "results" / str(self.row["id"])
        return self.bring(job / str(self.row["attempt_id"]), overwrite=True)

    def bring(self, to: Path, *, overwrite: bool) -> dict[str, Path]:
        """Copy the files to the directory `to`, made if need be; return where each is.

        Raises AlreadyExists, before any is copied, when one is there and `overwrite` is false.
        """
        to = to.absolute()
        targets = {name: to / local for name, local in self._locals(self._files()).items()}
        taken = [path for path in targets.values() if path.exists()] if not overwrite else []
        if taken:
            raise AlreadyExists(f"{taken[0]} is already there", hint="remove it, or overwrite")
        for name, target in targets.items():
            _inside(to, target)
            self._context.storage.download(self._files()[name]["url"], target)
        return targets

    def _files(self) -> dict[str, Mapping[str, Any]]:
        kept = self.row["outputs"] or ()
        return {file["name"]: file for file in kept if file["kind"] == "file" and file["url"]}

    def _locals(self, names: Iterable[str]) -> dict[str, str]:
        """Return the path of each file under the output directory."""
        declared = {
            self._fill(o["name"]): self._fill(o.get("local") or o["name"])
            for o in self.row["declared"]
        }
        return {name: declared.get(name, name) for name in names}

    def _fill(self, text: str) -> str:
        index = self.row["array_index"]
        return text if index is None else text.replace(INDEX, str(index))

    def _read(self, name: str, offset: int) -> bytes:
        kept = {o["name"]: o for o in self.row["outputs"] or () if o["kind"] == "stream"}
        found = kept.get(name)
        if found is None:
            return b""
        if found["data"] is not None:
            return base64.b64decode(found["data"])[offset:]
        if found["url"] is not None:
            return self._context.storage.read(found["url"], offset=offset)
        attempt_id = self.row["attempt_id"]
        return self._context.read(
            lambda c: models.inline_data(c, attempt_id, kind="stream", name=name)
        )[offset:]


def ending(row: Mapping[str, Any]) -> str:
    """Say in words how a job ended."""
    reason, message = row["reason"], row["message"]
    if reason == "OK":
        return "succeeded"
    how = {
        "NONZERO": f"failed with exit code {row['exit_code']}",
        "SIGNALLED": f"was ended by signal {row['signal']}",
        "WALLTIME": "took longer than its walltime",
        "OUT_OF_MEMORY": "used more memory than it asked for",
        "CANCELLED": "was cancelled",
        "LOST": "was lost with its VM",
        "STAGING": "failed in copying its files",
        "SUBMISSION": "could not be started",
        "DEPENDENCY": "was not run: a job it depends on failed",
    }.get(reason, f"ended: {reason}")
    return f"{how} ({message})" if message else how


def _inside(folder: Path, target: Path) -> None:
    """Refuse a target that a link would lead out of the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        root = folder.resolve()
        if not target.parent.resolve().is_relative_to(root):
            raise DataStagingError(f"{target} would be outside of {folder}, behind a link")
    except OSError as error:
        raise DataStagingError(f"{folder}: {error.strerror or error}") from error
