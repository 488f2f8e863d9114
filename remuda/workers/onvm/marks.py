"""Marks that tell whose a process is, whatever it did to get away.

A mark is a number that children inherit: through fork, exec, setsid and a cleared environment. It
is kept as the soft limit of RLIMIT_RTTIME, far above what any process can reach (it is in
microseconds, and for real-time scheduling only), so it limits nothing. A process can take its mark
off, which no program does that does not mean to escape.
"""

from __future__ import annotations

import resource
import zlib
from functools import lru_cache

HELPER = 0  # in place of an attempt: of the runner's own programs
PREPARATION = 0xFFFFFFFF  # of the pool's preparation, and what it leaves running
CHECK = 0xFFFFFFFE  # of checks
BIT = 1 << 62


@lru_cache(maxsize=4)
def _of_home(home: str) -> int:
    return BIT | (zlib.crc32(home.encode("utf-8", "surrogateescape")) & 0x3FFFFFFF) << 32


def mark(home: str, attempt: int = HELPER) -> int:
    """Return the mark of an attempt's processes; those of one home share their upper half."""
    return _of_home(home) | (attempt & 0xFFFFFFFF)


def same_home(one: int, other: int) -> bool:
    """Tell whether two marks are of one home."""
    return one >> 32 == other >> 32


@lru_cache(maxsize=1)
def _hard() -> int:
    return resource.getrlimit(resource.RLIMIT_RTTIME)[1]


def wear(number: int) -> bool:
    """Put a mark on this process, for its children to inherit; 0 takes it off. False if denied."""
    try:
        resource.setrlimit(resource.RLIMIT_RTTIME, (number or _hard(), _hard()))
    except (OSError, ValueError):
        return False
    return True


def mark_of(pid: int) -> int:
    """Return a process's mark, 0 if it has none or is not to be seen."""
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_RTTIME)
    except OSError:
        return 0
    return soft if soft >= BIT else 0
