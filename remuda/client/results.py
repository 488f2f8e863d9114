"""How a job ended and what it left."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remuda.errors import AlreadyExists, DataStagingError, JobFailed
from remuda.models import outputs as models
from remuda.spec_files import destination, filler, is_url, name_inside

if TYPE_CHECKING:
    from remuda.client.context import Context

_TAIL_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Usage:
    """What the last attempt used; None where it is not known (it never started, or was lost).

    `max_rss_bytes` is of its largest process, `peak_memory_bytes` of all of it together where its
    VM can tell. The bytes read and written are those of disks.
    """

    wall_s: float | None
    user_s: float | None
    system_s: float | None
    max_rss_bytes: int | None
    peak_memory_bytes: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None


class Result:
    """How a job ended. `outputs`: the files it left, by name; `urls`: those put at URLs."""

    def __init__(self, record: FinalRecord, outputs: Mapping[str, Path]) -> None:
        """Made by `Job.result`."""
        row = record.row
        self.job_id: int = row["id"]
        self.exit_code: int | None = row["exit_code"]
        self.signal: int | None = row["signal"]
        self.reason: str = row["reason"]
        self.usage = Usage(**{field.name: row[field.name] for field in fields(Usage)})
        self.outputs = dict(outputs)
        self.urls = record.urls()
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
        """Bring the files to the job's `output_dir` and return them; what is there is replaced.

        Raises AlreadyExists instead, and copies none, for a job submitted with `overwrite=False`.
        Without an `output_dir` they are where the storage keeps them, if that is on this machine,
        else they are copied under the data directory. Files that were put at URLs stay there.
        """
        files = self._files()
        places = self._places(files)
        away = {name: Path(place) for name, place in places.items() if os.path.isabs(place)}
        overwrite = bool(self.row["overwrite"])
        if self.row["output_dir"] is not None:
            root = Path(self._fill(self.row["output_dir"])).absolute()
            below = {name: root / place for name, place in places.items() if name not in away}
            return self._copy(files, {**below, **away}, root, overwrite=overwrite)
        found = self._kept({name: file for name, file in files.items() if name not in away})
        return {**found, **self._copy(files, away, None, overwrite=overwrite)}

    def urls(self) -> dict[str, str]:
        """Return the files that were put at URLs of their own, by name."""
        return {
            file["name"]: file["url"]
            for file in self._all_files()
            if is_url(destination(file["name"], self._declared()) or "")
        }

    def bring(self, to: Path, *, overwrite: bool) -> dict[str, Path]:
        """Copy the files to the directory `to`, made if need be; return where each is.

        Raises AlreadyExists, before any is copied, when one is there and `overwrite` is false.
        """
        to = to.absolute()
        files = self._files()
        own = to == Path(self._fill(self.row["output_dir"] or "")).absolute()
        targets = {
            # A place of its own counts where the job's files go by themselves.
            name: to / (name if os.path.isabs(place) and not own else place)
            for name, place in self._places(files).items()
        }
        return self._copy(files, targets, to, overwrite=overwrite)

    def _kept(self, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
        """Return the files where they are on this machine, copied here if they are not."""
        storage = self._context.storage
        here = {name: storage.local_path(file["url"]) for name, file in files.items()}
        found = {name: path for name, path in here.items() if path is not None}
        if len(found) == len(files):
            return found
        job = self._context.settings.data_dir / "results" / str(self.row["id"])
        root = job / str(self.row["attempt_id"])
        return self._copy(files, {name: root / name for name in files}, root, overwrite=True)

    def _copy(
        self,
        files: Mapping[str, Mapping[str, Any]],
        targets: Mapping[str, Path],
        root: Path | None,
        *,
        overwrite: bool,
    ) -> dict[str, Path]:
        """Copy each file to its target, none of which may leave `root` by a link."""
        taken = [path for path in targets.values() if os.path.lexists(path)]
        folder = next((path for path in taken if path.is_dir() and not path.is_symlink()), None)
        if folder is not None:
            raise AlreadyExists(f"{folder} is a directory", hint="remove it")
        if taken and not overwrite:
            raise AlreadyExists(f"{taken[0]} is already there", hint="remove it, or overwrite")
        made = _Folders(root)
        for name, target in targets.items():
            file = files[name]
            if root is not None and target.is_relative_to(root):
                made.check(target)
            self._context.storage.download(
                file["url"],
                target,
                mode=0o777 & ~_umask() if file.get("executable") else None,
                sha256=file.get("sha256"),
            )
        return dict(targets)

    def _files(self) -> dict[str, Mapping[str, Any]]:
        """Return the files that are in the storage, by name."""
        elsewhere = self.urls()
        return {file["name"]: file for file in self._all_files() if file["name"] not in elsewhere}

    def _all_files(self) -> list[Mapping[str, Any]]:
        kept = self.row["outputs"] or ()
        return [file for file in kept if file["kind"] == "file" and file["url"]]

    def _places(self, names: Iterable[str]) -> dict[str, str]:
        """Return the path of each file: under the output directory, or absolute."""
        declared = self._declared()
        places = {}
        for name in names:
            place = destination(name_inside("output", name), declared) or name
            places[name] = place if os.path.isabs(place) else name_inside("output", place)
        seen: dict[str, str] = {}
        for name, place in places.items():
            if seen.setdefault(place, name) != name:
                raise DataStagingError(
                    f"outputs {seen[place]!r:.300} and {name!r:.300} of job {self.row['id']} "
                    f"would both be {place!r:.300}"
                )
        return places

    def _declared(self) -> list[dict[str, Any]]:
        return [
            {key: self._fill(v) if isinstance(v, str) else v for key, v in output.items()}
            for output in self.row["declared"]
        ]

    def _fill(self, text: str) -> str:
        return filler(self.row["array_index"], self.row["params"])(text)

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


class _Folders:
    """The directories files are copied to; each is looked at once."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._good: set[Path] = set()

    def check(self, target: Path) -> None:
        """Refuse a target that a link would lead out of the root, which is made if need be."""
        folder, root = target.parent, self._root
        if root is None or folder in self._good:
            return
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not folder.resolve().is_relative_to(root.resolve()):
                raise DataStagingError(f"{target} would be outside of {root}, behind a link")
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            raise DataStagingError(f"{root}: {getattr(error, 'strerror', '') or error}") from error
        self._good.add(folder)


def _umask() -> int:
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o022
