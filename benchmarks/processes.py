"""What a set of processes costs: CPU seconds and proportional memory, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def system_of(data_dir: Path) -> list[int]:
    """Return the processes that belong to the system kept in `data_dir`: it is in their words."""
    wanted = str(data_dir).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if wanted in words:
            found.append(int(entry.name))
    # A server's children need not carry the words of their parent.
    children = [pid for pid in _all() if _parent(pid) in found and pid not in found]
    return [pid for pid in found + children if pid != os.getpid()]


def cpu_s(pids: list[int]) -> float:
    """Return the CPU seconds the processes have used."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / _TICK


def run_s(pid: int) -> float:
    """Return the CPU seconds a process of one thread has used, to the microsecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def pss_bytes(pids: list[int]) -> int:
    """Return the processes' proportional resident memory: shared pages count once in all."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _all() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0
