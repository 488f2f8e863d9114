"""What this process measures of itself: durations of sweeps and placements, failures of the broker.

Kept in files of the state directory that `remuda metrics` reads, in the format of prometheus-client's
multiprocess mode. Each process has a number, held by a lock; the next one with that number goes on
with its files, so counters survive restarts and the files are as few as processes ever ran at once.
A forked child takes a number of its own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.mmap_dict import MmapedDict, mmap_key

log = logging.getLogger(__name__)

_MOST_PROCESSES = 1000
_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def folder(state_dir: Path) -> Path:
    """Return where the processes of a state directory keep their figures."""
    return state_dir / "metrics"


class _Files:
    """The files of this process, under the number it holds in a folder."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._pid = 0
        self._descriptor = -1
        self._number = 0
        self._open: dict[str, MmapedDict] = {}
        self.lock = threading.Lock()

    def of(self, kind: str) -> MmapedDict:
        """Return the file for metrics of a kind; a forked child gets one of its own."""
        if self._pid != os.getpid():
            # What a parent holds is its own: closing our copy leaves its lock alone.
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._open = {}
            self._number, self._descriptor = self._take()
            self._pid = os.getpid()
        if kind not in self._open:
            path = self._where / f"{kind}_{self._number}.db"
            self._open[kind] = MmapedDict(str(path))  # type: ignore[no-untyped-call]
        return self._open[kind]

    def close(self) -> None:
        """Close them, and give the number up."""
        with self.lock:
            for file in self._open.values():
                file.close()  # type: ignore[no-untyped-call]
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._open, self._pid, self._descriptor = {}, 0, -1

    def _take(self) -> tuple[int, int]:
        for number in range(_MOST_PROCESSES):
            path = self._where / f"{number}.lock"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return number, descriptor
            except OSError:
                os.close(descriptor)
        raise OSError(f"{_MOST_PROCESSES} processes keep figures in {self._where}")


def _value_class(files: _Files) -> type:
    """Return prometheus-client's class of values, kept in `files`.

    Its own takes the folder from the environment, which jobs on this machine would inherit.
    """

    class Value:
        _multiprocess = True

        def __init__(
            self,
            typ: str,
            metric_name: str,
            name: str,
            labelnames: Any,
            labelvalues: Any,
            help_text: str,
            **_: Any,
        ) -> None:
            self._kind = typ
            self._key = mmap_key(metric_name, name, labelnames, labelvalues, help_text)
            with files.lock:
                files.of(typ).read_value(self._key)  # type: ignore[no-untyped-call]

        def inc(self, amount: float) -> None:
            with files.lock:
                file = files.of(self._kind)
                value, _ = file.read_value(self._key)  # type: ignore[no-untyped-call]
                file.write_value(self._key, value + amount, 0.0)  # type: ignore[no-untyped-call]

        def get(self) -> float:
            with files.lock:
                return float(files.of(self._kind).read_value(self._key)[0])  # type: ignore[no-untyped-call]

    return Value


class Figures:
    """The metrics of a worker process; made once, before anything forks."""

    def __init__(self, where: Path) -> None:
        """Keep them in `where`, which is made; raises OSError."""
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        # From here on for all metrics of the process: labels make new values at any time.
        self._files = _Files(where)
        values.ValueClass = _value_class(self._files)
        registry = CollectorRegistry()
        self.sweep_s = Histogram(
            "remuda_sweep_duration_seconds",
            "How long a sweep took.",
            ["sweep"],
            buckets=_BOUNDS_S,
            registry=registry,
        )
        self.sweep_failures = Counter(
            "remuda_sweep_failures", "Sweeps that failed.", ["sweep"], registry=registry
        )
        self.placement_s = Histogram(
            "remuda_placement_duration_seconds",
            "How long a worker took to place the jobs that waited.",
            buckets=_BOUNDS_S,
            registry=registry,
        )
        self.send_failures = Counter(
            "remuda_message_failures",
            "Messages that could not be sent to the broker.",
            ["task"],
            registry=registry,
        )
        self.events_dropped = Counter(
            "remuda_monitor_events_dropped",
            "Events for Flower and other monitors that were dropped.",
            registry=registry,
        )

    def close(self) -> None:
        """Let the next process go on with the files."""
        self._files.close()


_figures: Figures | None = None


def keep(state_dir: Path) -> None:
    """Begin to keep figures; without a folder that can be written, nothing is kept."""
    global _figures
    if _figures is None:
        try:
            _figures = Figures(folder(state_dir))
        except OSError as error:
            log.warning("no figures are kept: %s", error)


def figures() -> Figures | None:
    """Return this process's figures; None where none are kept: outside a worker."""
    return _figures


@contextmanager
def timed_placement() -> Iterator[None]:
    """Measure a placement."""
    began = time.perf_counter()
    yield
    if _figures is not None:
        _figures.placement_s.observe(time.perf_counter() - began)
