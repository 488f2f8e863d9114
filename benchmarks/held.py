"""Processes held to a part of a core each, as if each had a host of its own: by cgroups, v1 or v2."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/cpu")
_V2 = Path("/sys/fs/cgroup")
_PERIOD_US = 20_000


class Share:
    """A cgroup whose members have, all together, so much of one core and no more."""

    def __init__(self, folder: Path) -> None:
        """Of a group that is there."""
        self._folder = folder

    def hold(self, pid: int) -> None:
        """Count a process, with all its threads, among the members."""
        (self._folder / "cgroup.procs").write_text(str(pid))


@contextmanager
def shares(count: int, *, of_a_core: float) -> Iterator[list[Share]]:
    """Give so many groups that each have this part of a core; none where no cgroup can be made."""
    folders: list[Path] = []
    try:
        try:
            for number in range(count):
                folder = _parent() / f"remuda-benchmark-{os.getpid()}-{number}"
                folder.mkdir()
                folders.append(folder)
                _limit(folder, round(_PERIOD_US * of_a_core))
            found = [Share(folder) for folder in folders]
        except OSError:
            found = []
        yield found
    finally:
        for folder in folders:
            _remove(folder)


def _parent() -> Path:
    return _V1 if (_V1 / "cpu.cfs_quota_us").exists() else _V2


def _limit(folder: Path, quota_us: int) -> None:
    if (folder / "cpu.cfs_quota_us").exists():
        (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
    else:
        (folder / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")


def _remove(folder: Path) -> None:
    """Remove a group; its last members may be ending."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
