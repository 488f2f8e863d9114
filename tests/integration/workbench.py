"""A worker's part played by hand: place a client's jobs, let them run, end them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from remuda import Client
from remuda.config import load_settings
from remuda.models import cancel, exits
from remuda.models.database import rows
from remuda.storage import Storage
from tests.integration.builders import (
    dispatch,
    ended,
    finish,
    lost,
    make_pool,
    make_vms,
    record,
)


class Workbench:
    """One database seen from both sides: clients, and what workers would record."""

    def __init__(self, engine: Engine, url: str, folder: Path) -> None:
        """Nothing is made yet."""
        self.engine = engine
        self.settings = load_settings(
            database_url=url, data_dir=folder / "data", state_dir=folder / "state"
        )
        self.storage = Storage(self.settings.storage)

    @contextmanager
    def client(self, **more: Any) -> Iterator[Client]:
        """A client of the database, closed at the end."""
        with Client(self.settings, owner="alice", **more) as made:
            yield made

    def pool(self, name: str = "herd", *, vms: int = 1, **fields: Any) -> int:
        """Make an open pool with running VMs, of 2 slots unless told otherwise."""
        with self.engine.begin() as connection:
            pool = make_pool(connection, name, **{"instance_count": 4, **fields})
            if vms:
                make_vms(connection, pool, vms)
            return pool

    def place(self, *, max_ahead: int = 1000) -> dict[int, tuple[int, int]]:
        """Place what can be placed, `max_ahead` on each VM ahead; return (attempt, VM) by job."""
        with self.engine.begin() as connection:
            placed = dispatch(connection, max_ahead=max_ahead)
        return {p.job_id: (p.attempt_id, p.vm_id) for p in placed}

    def live(self, job_id: int) -> tuple[int, int]:
        """Return the live attempt of a job and its VM, placing it if need be."""
        for _ in range(2):
            with self.engine.connect() as connection:
                found = rows(
                    connection,
                    """SELECT id, vm_id FROM attempts WHERE job_id = :job
                       AND state IN ('PLACED', 'STARTED', 'EXITED')""",
                    job=job_id,
                )
            if found:
                return found[0]["id"], found[0]["vm_id"]
            self.place()
        raise AssertionError(f"job {job_id} was not placed")

    def start(self, job_id: int) -> int:
        """Have the job started; return its attempt."""
        attempt, vm = self.live(job_id)
        with self.engine.begin() as connection:
            exits.lock_journal(connection, vm)
            exits.record_starts(connection, vm, {attempt: 0.0})
        return attempt

    def say(self, attempt: int, at: int, data: bytes, *, stream: str = "stdout") -> None:
        """Pass on output of a followed attempt."""
        chunk = {"attempt_id": attempt, "stream": stream, "at_byte": at, "data": data}
        with self.engine.begin() as connection:
            cancel.insert_chunks(connection, [chunk])

    def end(
        self,
        *job_ids: int,
        stdout: bytes = b"",
        stderr: bytes = b"",
        files: dict[str, bytes] | None = None,
        stored_stdout: bytes | None = None,
        **outcome: Any,
    ) -> None:
        """Let jobs end in one transaction; well unless `outcome` says otherwise."""
        live = {job_id: self.live(job_id) for job_id in job_ids}
        with self.engine.begin() as connection:
            for vm in sorted({vm for _, vm in live.values()}):
                attempts = [attempt for attempt, at in live.values() if at == vm]
                outputs = [
                    row
                    for attempt in attempts
                    for row in self._outputs(
                        attempt, {"stdout": stdout, "stderr": stderr}, files or {}, stored_stdout
                    )
                ]
                record(connection, vm, *(ended(a, **outcome) for a in attempts), outputs=outputs)

    def lose(self, job_id: int) -> None:
        """Let the job's attempt be lost and the job be NEW again."""
        attempt, vm = self.live(job_id)
        with self.engine.begin() as connection:
            record(connection, vm, lost(attempt))

    def exit(self, job_id: int) -> int:
        """Let the command end, its outputs still on the VM; return the attempt."""
        attempt, vm = self.live(job_id)
        with self.engine.begin() as connection:
            record(connection, vm, ended(attempt, state="EXITED", job_state="TERMINATING"))
        return attempt

    def collect(self, job_id: int, **outcome: Any) -> None:
        """End a job whose command has ended."""
        attempt, vm = self.live(job_id)
        with self.engine.begin() as connection:
            finish(connection, vm, ended(attempt, **outcome))

    def _outputs(
        self,
        attempt: int,
        streams: dict[str, bytes],
        files: dict[str, bytes],
        stored_stdout: bytes | None,
    ) -> Iterator[dict[str, Any]]:
        for name, data in streams.items():
            if data:
                text = base64.b64encode(data).decode()
                yield _row(attempt, "stream", name, len(data), data=text)
        kept = {("file", name): data for name, data in files.items()}
        if stored_stdout is not None:
            kept["stream", "stdout"] = stored_stdout
        for (kind, name), data in kept.items():
            key = f"jobs/{attempt}/{kind}/{name}"
            with self.storage.writing(key) as target:
                target.write(data)
            yield _row(attempt, kind, name, len(data), url=self.storage.url(key))


def _row(attempt: int, kind: str, name: str, size: int, **more: Any) -> dict[str, Any]:
    row = {"attempt_id": attempt, "kind": kind, "name": name, "size": size}
    return {**row, "data": None, "url": None, **more}
