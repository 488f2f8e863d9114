"""The runner's archive: the same bytes everywhere, and compiled for who can use that."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

from remuda.workers.bundle import bundle, install

DIGEST = """
import hashlib
from remuda.workers.bundle import bundle
print(hashlib.sha256(bundle()).hexdigest())
"""


def test_every_process_makes_the_same_bytes() -> None:
    """Hosts keep it by its digest: chance in it would have each worker bring one of its own."""
    found = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(found) == 1, found


def test_this_python_needs_no_source(tmp_path: Path) -> None:
    """It takes what is compiled, and so starts without compiling anything."""
    target = tmp_path / "runner.pyz"
    with zipfile.ZipFile(io.BytesIO(bundle())) as whole, zipfile.ZipFile(target, "w") as compiled:
        for name in whole.namelist():
            if name.endswith(".pyc"):
                compiled.writestr(name, whole.read(name))
    home = tmp_path / "home"
    command = [sys.executable, "-I", "-S", str(target), "stop", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_equal_archive_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "runner.pyz"
    install(target)
    before = target.stat()
    install(target)
    assert target.stat() == before
    assert target.read_bytes() == bundle()
