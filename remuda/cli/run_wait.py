"""What `remuda run` tells a person while the job has not started: why it waits."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from remuda.cli.output import note, printable
from remuda.errors import RemudaError

if TYPE_CHECKING:
    from remuda.client import Client, Job

PAUSES_S = (4.0, 10.0, 30.0)  # before each look; the last again and again
_WAITING = "NEW"


class Waiting:
    """Says on the terminal why the job waits, and again when that changes; `with` it."""

    def __init__(self, client: Client, job: Job) -> None:
        """Say nothing where nobody looks on: stderr may be somebody's data."""
        self._client = client
        self._job = job
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._run, name="remuda-waiting", daemon=True)

    def __enter__(self) -> Waiting:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def _run(self) -> None:
        said = ""
        looks = 0
        while not self._over.wait(PAUSES_S[min(looks, len(PAUSES_S) - 1)]):
            looks += 1
            try:
                job = self._client.job(self._job.id)
                why = self._client.explain(job)[0] if job.state == _WAITING else ""
            except RemudaError:  # an outage: what follows the output tells, if it lasts
                continue
            if why and why != said and not self._over.is_set():
                note(f"remuda: job {job.id} waits: {printable(why)}")
            said = why
