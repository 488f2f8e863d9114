"""What benchmarks have in common: a system of their own, and figures told beside their limits."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

Limits = Mapping[str, tuple[float, bool]]  # True: at least so much, False: at most


@contextlib.contextmanager
def own_system() -> Iterator[Path]:
    """Give the folder of an embedded system of this process's own, which is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="remuda-bench-") as name:
        folder = Path(name)
        for variable in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            os.environ[variable] = str(folder / variable.lower())
        try:
            yield folder
        finally:
            subprocess.run([sys.executable, "-m", "remuda", "down", "--now"], check=False)


def tell(found: Mapping[str, float], limits: Limits, *, file: Path | None = None) -> int:
    """Print a line for each figure; return 1 if one is beyond its limit, else 0.

    `file`: where the figures are written besides, as JSON.
    """
    if file is not None:
        file.write_text(json.dumps(found, indent=2))
    missed = 0
    for key, value in found.items():
        verdict = ""
        if key in limits:
            limit, more = limits[key]
            good = value >= limit if more else value <= limit
            missed += not good
            verdict = f"{'ok' if good else 'MISSED'} ({'>=' if more else '<='} {limit:g})"
        print(f"{key:26} {value:10.3f}  {verdict}".rstrip())
    return 1 if missed else 0
