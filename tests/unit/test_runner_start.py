"""A runner that cannot start says so and is gone, whatever its constructor left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from remuda.workers.onvm.commands import lock

# As `runner serve`, with a runner that raises after it took over the home: a thread runs, and the
# log takes no more.
FAILING = """
import os, sys, threading
from remuda.workers.onvm import commands
from remuda.workers.runner import Runner

class Failing(Runner):
    def __init__(self, *words, **options):
        super().__init__(*words, **options)
        threading.Thread(target=threading.Event().wait).start()
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
        raise ValueError("no such thing")

commands.runner_of = lambda home, options: Failing(home, **options)
sys.exit(commands.main())
"""


def test_a_start_that_fails_is_reported_and_over(tmp_path: Path) -> None:
    """The caller hears why, at once; nothing holds the home's lock any more."""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", FAILING, "serve", "--home", str(tmp_path), "--slots", "1"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.strip() == "runner: ValueError: no such thing"
    os.close(lock(str(tmp_path), 5.0))
