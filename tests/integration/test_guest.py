"""Jobs in real virtual machines: what cgroup v2 does for them, as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from remuda.config import Settings
from remuda.errors import VmUnreachable
from remuda.hosts import host_of
from remuda.workers import remote
from remuda.workers.backends import VmAddress, get_backend
from remuda.workers.backends.slurm import serve_arguments
from remuda.workers.login import hang_up, log_in
from remuda.workers.providers import VmSpec, get_provider
from tests.libvirtd import Libvirtd, built_guest, libvirtd
from tests.unit.test_runner_limits import GREEDY, LIMIT, MIB
from tests.unit.vm import Line, job, output, wait_until

__all__ = ["libvirtd"]

pytestmark = pytest.mark.timeout(240)  # the first one waits for two emulated machines to boot

BOOT_S = 90.0
ANSWER_S = 60.0
HIDDEN = "env -i /usr/bin/setsid /usr/bin/sleep 1000"
USERS = ("root", "remuda")
WORK = """
import os, time
x = bytearray(20 << 20)
f = open("x", "wb")
f.write(bytes(4 << 20))
f.flush()
os.fsync(f)
while time.process_time() < 0.3:
    pass
"""


@dataclass
class Guest:
    """A VM that serves a runner."""

    user: str
    vm: VmAddress
    lines: list[Line] = field(default_factory=list)
    attempts: Iterator[int] = field(default_factory=lambda: iter(range(1, 1000)))

    def line(self) -> Line:
        """Return a connection that watches."""
        way = {key: value for key, value in self.vm.address.items() if key != "home"}
        sock = remote.attach(host_of(way), self.vm.address["home"], timeout_s=ANSWER_S)
        sock.settimeout(ANSWER_S)
        self.lines.append(Line(sock, watch=True))
        return self.lines[-1]


def boot(daemon: Libvirtd, user: str, settings: dict[str, Any]) -> Guest:
    """Make a VM and have its runner serve."""
    provider = get_provider("libvirt", Settings(data_dir=Path("/nonexistent")), settings)
    spec = VmSpec("guest", "sim", 4, heartbeat_s=1.0, image="guest")
    vm_id = provider.spawn(spec, user)
    vm = VmAddress(1, "guest", "ssh", provider.describe([vm_id])[vm_id].address)
    words = serve_arguments(name="guest", slots=4, memory_bytes=None, heartbeat_s=1.0, settings={})
    deadline = time.monotonic() + BOOT_S
    while True:
        try:
            get_backend("ssh").install(vm, words, timeout_s=ANSWER_S)
            return Guest(user, vm)
        except VmUnreachable:
            assert time.monotonic() < deadline, daemon.log()
            time.sleep(0.2)  # between two looks at a condition with a deadline


@pytest.fixture(scope="module")
def guests(libvirtd: Libvirtd) -> dict[str, Guest]:
    """A VM that root logs in to, and one of an ordinary user; all ends with the daemon."""
    settings = libvirtd.settings(built_guest())
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda user: boot(libvirtd, user, {**settings, "user": user}), USERS)
        return dict(zip(USERS, made, strict=True))


@pytest.fixture(params=USERS)
def guest(request: pytest.FixtureRequest, guests: dict[str, Guest]) -> Guest:
    return guests[request.param]


@pytest.fixture
def line(guest: Guest) -> Iterator[Line]:
    yield guest.line()
    while guest.lines:
        with contextlib.suppress(OSError):
            guest.lines.pop().close()


def python(text: str) -> tuple[str, ...]:
    return "python3", "-I", "-S", "-c", text


def test_memory_is_limited_by_the_kernel(guest: Guest, line: Line) -> None:
    assert line.hello["cgroup"] == "v2"
    entry = line.run(next(guest.attempts), *python(GREEDY), mem=LIMIT)
    assert entry["why"] == "OUT_OF_MEMORY"
    assert LIMIT * 0.9 < entry["peak"] <= LIMIT
    assert "64 MiB" in entry["msg"]


def test_all_of_an_attempt_counts_and_all_of_it_is_killed(guest: Guest, line: Line) -> None:
    """Children in sessions of their own, each within the limit, together beyond it."""
    part = f"x = bytearray({LIMIT * 2 // 5}); import time; time.sleep(1000)"
    each = f"(env -i /usr/bin/setsid /usr/bin/python3 -ISc '{part}' &)"
    entry = line.sh(next(guest.attempts), f"{each}; {each}; {each}; sleep 1000", mem=LIMIT)
    assert entry["why"] == "OUT_OF_MEMORY"
    assert LIMIT * 0.9 < entry["peak"] <= LIMIT
    wait_until(lambda: alive(guest, line) == b"", "nothing is left")


def test_the_walltime_ends_whoever_hid(guest: Guest, line: Line) -> None:
    """Without a control group of its own, with one, and with one that is frozen."""
    hidden = f"({HIDDEN} &); ({HIDDEN} & {HIDDEN} &); exec sleep 1000"
    plain, limited, frozen = (next(guest.attempts) for _ in range(3))
    line.start(
        job(plain, "sh", "-c", hidden, wall=1),
        job(limited, "sh", "-c", hidden, wall=1, mem=LIMIT),
        job(frozen, "sh", "-c", hidden, mem=LIMIT),
    )
    line.started(frozen)
    assert line.ask("suspend", a=frozen)["suspended"]
    assert [line.exit(a)["why"] for a in (plain, limited)] == ["WALLTIME", "WALLTIME"]
    line.ask("cancel", a=[frozen], grace=0)
    assert line.exit(frozen)["why"] == "CANCELLED"
    wait_until(lambda: alive(guest, line) == b"", "nothing is left")


def test_what_was_used_is_told(guest: Guest, line: Line) -> None:
    entry = line.run(next(guest.attempts), *python(WORK), mem=LIMIT)
    assert entry["why"] == "OK"
    assert 24 * MIB < entry["peak"] <= LIMIT
    assert 20 * MIB < entry["rss"] <= entry["peak"] + 16 * MIB
    assert entry["u"] + entry["sy"] >= 0.3
    assert entry["wr"] >= 4 * MIB


def test_a_killed_runner_leaves_nothing_that_runs(guest: Guest, line: Line) -> None:
    lost = next(guest.attempts)
    hidden = f"({HIDDEN} &); exec sleep 1000"
    line.start(job(lost, "sh", "-c", hidden, mem=LIMIT))
    line.started(lost)
    home = f"{'/root' if guest.user == 'root' else '/home/' + guest.user}/.remuda/vm"
    ask(guest, f"kill -9 $(cut -d ' ' -f 1 {home}/runner.pid)")
    line.drain()
    get_backend("ssh").revive(guest.vm, timeout_s=ANSWER_S)
    again = guest.line()
    assert again.exit(lost)["why"] == "LOST"
    assert alive(guest, again) == b""
    entry = again.run(next(guest.attempts), *python(GREEDY), mem=LIMIT)
    assert entry["why"] == "OUT_OF_MEMORY"


def alive(guest: Guest, line: Line) -> bytes:
    """Return what sleeps or computes there, of what the tests started."""
    pattern = "sleep 1000|python3 -ISc|urandom"
    return output(line.run(next(guest.attempts), "pgrep", "-f", "-l", pattern))


def ask(guest: Guest, script: str) -> None:
    """Run something there that is no job."""
    way = {key: value for key, value in guest.vm.address.items() if key != "home"}
    connection = log_in(host_of(way), ANSWER_S)
    try:
        connection.run(script, hide=True, in_stream=False)
    finally:
        hang_up(connection)
