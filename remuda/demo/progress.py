"""Live progress of the demo, and the samples its plot is made of."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from remuda.client import Client, Pool
from remuda.errors import RemudaError

_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Sample:
    """What there was at `at_s` seconds from the start: jobs and VMs by state."""

    at_s: float
    jobs: Counter[str] = field(default_factory=Counter)
    vms: Counter[str] = field(default_factory=Counter)


class Monitor:
    """Samples the pool a few times a second in a thread and shows it; a context manager."""

    def __init__(self, client: Client, pool: Pool, *, total: int, console: Console) -> None:
        self.samples: list[Sample] = []
        self._client, self._pool, self._total = client, pool, total
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=36),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("tiles", total=total, rate="")
        self._live = Live(console=console, refresh_per_second=6, transient=not console.is_terminal)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="remuda-demo", daemon=True)

    def __enter__(self) -> Monitor:
        self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        self._live.stop()

    def jobs_are_done(self) -> None:
        """Say that only the pool's way back to zero is left."""
        self._progress.update(self._task, completed=self._total, description="closing VMs")

    def wait_for_zero(self, *, timeout_s: float) -> bool:
        """Wait until the pool has no VM left; False when it still has after `timeout_s`."""
        since = len(self.samples)
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self.samples) > since and not self.samples[-1].vms, timeout=timeout_s
            )

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                jobs = Counter(self._client.counts(pool=self._pool))
                vms = Counter(vm.state for vm in self._client.vms(pool=self._pool))
            except RemudaError as error:
                self._live.update(Text(f"no news: {error}"))
                continue
            sample = Sample(time.monotonic() - self._began, jobs, vms)
            with self._changed:
                self.samples.append(sample)
                self._changed.notify_all()
            done = jobs["TERMINATED"]
            self._progress.update(
                self._task, completed=done, rate=f"{done / max(sample.at_s, 0.001):.1f}/s"
            )
            self._live.update(Group(self._progress, _told("jobs", jobs), _told("VMs ", vms)))


def _told(what: str, counts: Counter[str]) -> Text:
    states = "  ".join(
        f"{state.lower()} {count}" for state, count in sorted(counts.items()) if count
    )
    return Text(f"  {what}  {states or 'none'}")
