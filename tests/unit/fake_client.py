"""A client that only remembers, for the job commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from remuda.cli.app import root
from remuda.client.explaining import Explanation
from remuda.client.reasons import Reason
from remuda.errors import (
    AlreadyExists,
    JobFailed,
    NoResources,
    OutputNotAvailable,
    UnknownJob,
    WaitTimeout,
)
from remuda.spec import JobSpec
from tests.unit.cli import stand_in

NOON = datetime(2025, 1, 31, 12, tzinfo=UTC)


@dataclass
class FakeJob:
    """A row."""

    id: int
    state: str = "TERMINATED"
    reason: str | None = "OK"
    exit_code: int | None = 0
    array: int | None = None
    name: str = ""
    message: str | None = None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    files: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return self.state == "TERMINATED"

    def info(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "pool": "sim",
            "state": self.state,
            "reason": self.reason,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "message": self.message,
            "array_id": self.array,
            "epoch": 1,
            "submitted_at": NOON,
            "started_at": NOON,
            "ended_at": NOON + timedelta(seconds=2),
            "wall_s": 1.5,
            "never_shown": "x",
        }

    def peek(self, name: str) -> bytes:
        if self.state == "NEW":
            raise OutputNotAvailable(f"job {self.id} is NEW", hint="something of the API")
        return f"{name} so far".encode()

    def result(self) -> Any:
        if self.reason != "OK":
            raise JobFailed(f"job {self.id} failed")
        outputs = {name: Path("/own") / name for name in self.files}
        return SimpleNamespace(outputs=outputs, urls={})

    def results(self, to: Path, *, overwrite: bool) -> dict[str, Path]:
        if "taken" in self.files and not overwrite:
            raise AlreadyExists("taken is already there")
        return {name: to / name for name in self.files}


@dataclass
class FakeClient:
    """Jobs in a dict; `ending` says what the live ones turn into."""

    rows: dict[int, FakeJob] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    timeout: bool = False
    full: bool = False

    def add(self, *jobs: FakeJob) -> FakeClient:
        self.rows |= {job.id: job for job in jobs}
        return self

    def submit(self, spec: JobSpec, *, pool: str | None, allow_pending: bool) -> FakeJob:
        if self.full and not allow_pending:
            raise NoResources("it can never run", hint="something of the API")
        self.calls.append(("submit", (spec, pool)))
        return self.rows.setdefault(5, FakeJob(5, "NEW", None, None))

    def submit_array(
        self,
        spec: JobSpec,
        indices: int | list[int],
        *,
        pool: str | None,
        name: str,
        allow_pending: bool,
    ) -> list[FakeJob]:
        self.calls.append(("submit_array", (spec, indices, pool, name)))
        ids = [101, 102, 103, 107]
        self.add(*(FakeJob(i, "NEW", None, None, array=12) for i in ids))
        return [self.rows[i] for i in ids]

    def job(self, job_id: int) -> FakeJob:
        if job_id not in self.rows:
            raise UnknownJob(f"there is no job {job_id}")
        return self.rows[job_id]

    def jobs(
        self,
        *,
        ids: Sequence[int] | None = None,
        array: int | None = None,
        state: Sequence[str] | None = None,
        limit: int | None = 1000,
        **filters: Any,
    ) -> list[FakeJob]:
        self.calls.append(("jobs", {"state": state, "limit": limit, **filters}))
        found = [
            job
            for job in self.rows.values()
            if (ids is None or job.id in ids)
            and (array is None or job.array == array)
            and (state is None or job.state in state)
        ]
        return found[:limit]

    def as_completed(
        self, jobs: Iterable[FakeJob], *, timeout_s: float | None
    ) -> Iterator[FakeJob]:
        for job in jobs:
            if self.timeout:
                raise WaitTimeout
            job.state, job.reason = "TERMINATED", job.reason or "OK"
            yield job

    def reasons(self, pool: str | None, *, array: int | None) -> Counter[str]:
        return Counter(str(job.reason) for job in self.rows.values() if job.done)

    def cancel(
        self, jobs: list[FakeJob] | None = None, *, dry_run: bool = False, **filters: Any
    ) -> int:
        self.calls.append(("cancel", filters if jobs is None else jobs))
        return sum(not job.done for job in (self.rows.values() if jobs is None else jobs))

    def retry(self, job: FakeJob, *, pool: str | None) -> FakeJob:
        return FakeJob(job.id + 1000)

    def follow(self, job: FakeJob) -> Iterator[tuple[str, bytes]]:
        yield "stdout", b"one\n"
        yield "stderr", b"warn\n"
        yield "stdout", b"two\n"

    def why(self, job_id: int) -> Explanation:
        return Explanation((Reason("queue", "It waits."),), 1.5, "a guess")

    def explain(self, job_id: int) -> list[str]:
        return ["It waits.", "Bad\x1b[2Jname"]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient()
    stand_in(monkeypatch, made)
    return made


def remuda(*arguments: str) -> Result:
    return CliRunner().invoke(root, list(arguments), prog_name="remuda")
