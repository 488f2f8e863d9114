"""From what users write to rows: files staged, defaults filled in, chunks put aside until the end.

All of it happens before a transaction is opened, so a wrong job in the middle of a generator leaves
nothing behind, and no transaction stays open while files are copied.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from remuda.client.inputs import InputFinder
from remuda.models.submit import NewJob, NewSpec, new_job
from remuda.spec import JobSpec
from remuda.spec_files import output_row
from remuda.storage import Storage

CHUNK = 5000
_MEMORY_BYTES = 32 << 20


class Preparer:
    """Turns specs into rows; equal ones that follow each other share a row of `job_specs`."""

    def __init__(self, storage: Storage, *, output_limit_bytes: int) -> None:
        """Relative paths are those of the working directory now."""
        self._last: tuple[JobSpec, NewSpec] | None = None
        self._limit = output_limit_bytes
        self._here = os.getcwd()
        self._inputs = InputFinder(storage, self._here)

    def spec(self, spec: JobSpec) -> NewSpec:
        """Store the inputs and return the row; raises DataStagingError naming a missing one.

        The same spec again gives the same row.
        """
        if self._last is not None and self._last[0] is spec and not spec.input_files:
            return self._last[1]
        row = NewSpec(
            command=list(spec.words),
            environment=dict(spec.environment or {}),
            inputs=self._inputs.rows(spec.input_files) if spec.input_files else [],
            outputs=[output_row(file) for file in spec.output_files],
            output_dir=self._path(os.fspath(spec.output_dir)) if spec.output_dir else None,
            overwrite=spec.overwrite,
            workdir=spec.workdir,
            prologue=_words(spec.prologue),
            epilogue=_words(spec.epilogue),
            join_output=spec.join_output,
            output_limit_bytes=spec.output_limit_bytes or self._limit,
            wait_for_resources=spec.wait_for_resources,
        )
        self._last = (spec, row)
        return row

    def _path(self, path: str) -> str:
        return os.path.normpath(os.path.join(self._here, path))


def _words(command: Any) -> list[str] | None:
    return None if command is None else list(command)


class Chunk:
    """Up to CHUNK jobs with their specs, and the ids of those among them that were there before."""

    def __init__(self) -> None:
        """Begin with none."""
        self.specs: list[NewSpec] = []
        self.jobs: list[NewJob] = []
        self.first: list[int] = []  # per job: the id of an earlier one with its key, or 0

    def add(
        self,
        row: NewSpec,
        spec: JobSpec,
        *,
        index: int | None = None,
        params: dict[str, str] | None = None,
    ) -> None:
        """Add a job to insert; it shares the row of the one before if that is the same."""
        if not self.specs or (row is not self.specs[-1] and row != self.specs[-1]):
            self.specs.append(row)
        self.jobs.append(new_job(spec, len(self.specs) - 1, index=index, params=params))
        self.first.append(0)

    def add_known(self, job_id: int) -> None:
        """Add a job that is there already."""
        self.first.append(job_id)

    def ids(self, inserted: Sequence[int]) -> list[int]:
        """Return the id of each job in order, given those of the inserted ones."""
        fresh = iter(inserted)
        return [known or next(fresh) for known in self.first]


class Spool:
    """Chunks put aside, in memory or, when they are many, in an unnamed file."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self.fresh = 0  # of them to insert
        self._file = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115

    def put(self, chunk: Chunk) -> None:
        """Put a chunk aside."""
        self.count += len(chunk.first)
        self.fresh += len(chunk.jobs)
        pickle.dump(chunk, self._file, protocol=pickle.HIGHEST_PROTOCOL)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks again; may be called more than once."""
        self._file.seek(0)
        while True:
            try:
                chunk = pickle.load(self._file)
            except EOFError:
                return
            yield chunk

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
