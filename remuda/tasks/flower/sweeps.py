"""How beat's sweeps are shown to monitors: each that found something, and a sign of life a minute.

Celery's own events would show every one of them, two a second, and the jobs would drown.
"""

from __future__ import annotations

import time
from typing import Any

from celery import Task

from remuda.tasks import figures
from remuda.tasks.watching import this_watcher


class Sweep(Task):  # type: ignore[misc]
    """A task that returns what it found in a few words; None for nothing."""

    abstract = True
    send_events = False

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Note when it began."""
        self.request.began = time.time()

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Keep its figures, and hand it to the teller."""
        took_s, kept = time.time() - self.request.began, figures.figures()
        if kept is not None:
            sweep = self.name.removeprefix("remuda.")
            kept.sweep_s.labels(sweep).observe(max(0.0, took_s))
            kept.sweep_failures.labels(sweep).inc(status == "FAILURE")
        watcher = this_watcher()
        if watcher is not None:
            watcher.teller.swept(
                task_id,
                self.name,
                began=self.request.began,
                found=None if retval is None else str(retval),
                failed=status == "FAILURE",
            )
