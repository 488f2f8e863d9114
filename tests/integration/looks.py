"""What tests of running jobs look with: in time, for how long, and at output with gaps."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable

from remuda import Refused
from remuda.client import Job


def in_time(start: Callable[[], Job], what: Callable[[Job], object]) -> Job:
    """Do something to a job before its short walltime is over; on a busy machine to another one."""
    for _ in range(10):
        job = start()
        with contextlib.suppress(Refused):
            what(job)
            return job
    raise AssertionError("it was never in time")


def best_s(what: Callable[[], object], times: int = 5) -> float:
    """Return what it takes when nothing else on this machine holds it up."""
    took = []
    for _ in range(times):
        began = time.monotonic()
        what()
        took.append(time.monotonic() - began)
    return min(took)


def account(whole: bytes, at: int, told: bytes) -> tuple[int, list[int]]:
    """Find what was told in what was written, from a byte on; return where it ends, and the gaps."""
    gaps = []
    pieces = re.split(rb"\n\[remuda: (\d+) bytes were cut out here\]\n", told)
    for piece, gap in zip(pieces[::2], [*map(int, pieces[1::2]), 0], strict=True):
        assert whole[at : at + len(piece)] == piece
        at += len(piece) + gap
        gaps += [gap] if gap else []
    return at, gaps
