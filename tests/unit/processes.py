"""Other Python processes for tests, and waiting for what they do."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        threading.Event().wait(0.005)


def quickest(what: Callable[[], object], below_s: float, *, tries: int = 10) -> float:
    """Return the seconds `what` takes at best, asked no more once that is below a bound.

    A busy machine may hold up one of several runs; what is slow by itself is slow in all.
    """
    took: list[float] = []
    while len(took) < tries and (not took or took[-1] >= below_s):
        began = time.monotonic()
        what()
        took.append(time.monotonic() - began)
    return min(took)


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process that runs `code`."""
    argv = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
