"""What an attempt used of the machine, all its steps together."""

from __future__ import annotations

from typing import Any

BLOCK = 512  # bytes, the unit of getrusage


class Usage:
    """Times in seconds, sizes in bytes. Named as in `struct rusage`, so either can be told of."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.ru_utime = self.ru_stime = 0.0
        self.ru_maxrss = self.ru_inblock = self.ru_oublock = 0
        self.peak = self.read = self.written = 0  # of the control group; 0: not known

    def add(self, more: Any) -> None:
        """Add what one process and the children it waited for used."""
        self.ru_utime += more.ru_utime
        self.ru_stime += more.ru_stime
        self.ru_maxrss = max(self.ru_maxrss, more.ru_maxrss)
        self.ru_inblock += more.ru_inblock
        self.ru_oublock += more.ru_oublock


def told(usage: Any) -> dict[str, Any]:
    """Return the fields of an exit entry that tell of the usage."""
    rss = usage.ru_maxrss * 1024
    return {
        "u": usage.ru_utime,
        "sy": usage.ru_stime,
        "rss": rss,
        "peak": getattr(usage, "peak", 0) or rss,
        "rd": getattr(usage, "read", 0) or usage.ru_inblock * BLOCK,
        "wr": getattr(usage, "written", 0) or usage.ru_oublock * BLOCK,
    }


def size_text(size: float) -> str:
    """Return a size for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
