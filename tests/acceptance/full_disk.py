"""Run in a mount namespace: a system whose VMs live on a file system of a few megabytes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from remuda import JobFailed, JobSpec
from tests.system import running_system


def main(small: Path, database_url: str) -> None:
    """Fill the disk by a job's input; then run a job without one."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], check=True)
    (small / "data").mkdir()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").symlink_to(small / "data")
        big = folder / "big"
        big.write_bytes(b"b" * (6 << 20))
        with (
            running_system(
                folder, database_url=database_url, storage_url=(folder / "storage").as_uri()
            ) as system,
            system.client() as client,
        ):
            pool = client.create_pool("sim", provider="local", slots_per_vm=1)
            pool.submit()
            try:
                client.submit(JobSpec(["true"], inputs=[(str(big), "big")]), pool=pool).result(
                    timeout_s=60
                )
            except JobFailed as failure:
                print("reason", failure.reason, failure)
            result = client.submit(JobSpec(["true"]), pool=pool).result(timeout_s=60)
            print("next job exit", result.exit_code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
