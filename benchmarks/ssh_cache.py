"""The cache of inputs: many jobs with one large input, which goes to their VM once.

Between the workers and the VM's sshd is a relay that counts every byte; beside it, the disk the
sandboxes take is looked at all the while. Each job checks its copy's size, beginning and end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.sshd import Sshd

__all__ = ["cache"]

INPUT_BYTES = 100_000_000
SPARE_BYTES = 20 << 30  # of the disk, to begin at all
ENDS = 16  # bytes compared at either end
LOOK_S = 0.1
CHECK = """
[ "$(stat -c %s data)" = "$0" ] || exit 3
[ "$(head -c 16 data | od -An -tx1 | tr -d ' \\n')" = "$1" ] || exit 4
[ "$(tail -c 16 data | od -An -tx1 | tr -d ' \\n')" = "$2" ] || exit 5
"""


class Relay:
    """Passes connections on to a port of this machine; counts the bytes that go there."""

    def __init__(self, port: int) -> None:
        """`port`: where to."""
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.there_bytes = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                caller, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                for source, target in ((caller, server), (server, caller)):
                    target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    ends = (source, target, target is server)
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, there: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 18):
                if there:
                    with self._lock:
                        self.there_bytes += len(piece)
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Take no more connections."""
        self._server.close()


@contextlib.contextmanager
def disk_peak(home: Path) -> Iterator[list[int]]:
    """Look at the bytes of disk the sandboxes below `home` take; the list has the most seen."""
    peak, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(LOOK_S):
            peak[0] = max(peak[0], _taken(home))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _taken(home: Path) -> int:
    total = 0
    for path in home.glob(".remuda/*/jobs/*/data"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def cache(host: Sshd, jobs: int, folder: Path) -> dict[str, float]:
    """Run the jobs on one VM; raises AssertionError if the input did not go there exactly once."""
    from remuda import Client, JobSpec

    if shutil.disk_usage(host.home).free < SPARE_BYTES:
        raise AssertionError(f"less than {SPARE_BYTES >> 30} GiB are free at {host.home}")
    path = folder / "data"
    path.write_bytes(data := os.urandom(INPUT_BYTES))
    ends = (data[:ENDS].hex(), data[-ENDS:].hex())
    del data
    command = ["sh", "-c", CHECK, str(INPUT_BYTES), *ends]
    relay = Relay(host.port)
    entry: dict[str, Any] = {**host.entry(), "port": relay.port}
    with Client() as client, disk_peak(host.home) as peak:
        pool = client.create_pool(
            "cached", provider="static", settings={"hosts": [entry]}, slots_per_vm=2,
            instance_count=1,
        )  # fmt: skip
        pool.submit()
        client.submit(JobSpec(["true"]), pool=pool).result(timeout_s=120)  # the VM is ready
        before, start = relay.there_bytes, time.perf_counter()
        made = client.submit_array(JobSpec(command, inputs=[(str(path), "data")]), jobs, pool=pool)
        for job in client.as_completed(made, timeout_s=1200):
            if job.result().exit_code != 0:
                raise AssertionError(job)
        seconds = time.perf_counter() - start
        sent = relay.there_bytes - before
        pool.close()
        pool.wait_closed(timeout_s=60)
    relay.stop()
    if sent // INPUT_BYTES != 1:
        raise AssertionError(f"{sent} bytes went to the VM for one input of {INPUT_BYTES}")
    return {
        "cache_jobs": float(jobs),
        "cache_jobs_per_s": jobs / seconds,
        "cache_input_mb": INPUT_BYTES / 1e6,
        "cache_sent_mb": sent / 1e6,
        "cache_disk_peak_mb": peak[0] / 1e6,
    }
