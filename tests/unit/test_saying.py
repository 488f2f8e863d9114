"""What a VM itself says: kept in a ring, pushed to the watcher until it is acknowledged."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda.workers.onvm.saying import PIECE, PIECES, Ring
from tests.unit.vm import Line, Vm, a_vm, wait_until


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    yield from a_vm(tmp_path / "vm")


def _all(ring: Ring, offset: int = 0) -> tuple[int, bytes]:
    """Return where the ring's data from an offset begin, and all of them."""
    first, data = ring.read(offset, 1000)
    got = bytearray(data)
    while data:
        at, data = ring.read(first + len(got), 1000)
        assert at == first + len(got)
        got += data
    return first, bytes(got)


def test_a_ring_keeps_the_last_of_what_was_written(tmp_path: Path) -> None:
    ring, whole = Ring(str(tmp_path), "stdout"), b""
    assert ring.read(0, 1000) == (0, b"")
    for i in range(60):
        data = bytes([i]) * (i * 97)
        ring.write(data)
        whole += data
    assert ring.total == len(whole) > PIECE * PIECES
    at, kept = _all(ring)
    assert PIECE * (PIECES - 1) < len(kept) <= PIECE * PIECES
    assert kept == whole[at:]
    assert _all(ring, len(whole) - 5) == (len(whole) - 5, whole[-5:])
    assert len(list(tmp_path.iterdir())) == PIECES
    again = Ring(str(tmp_path), "stdout")
    assert (again.total, _all(again)) == (ring.total, _all(ring))
    again.write(b"more")
    assert _all(again, ring.total) == (len(whole), b"more")


def test_rings_do_not_mix(tmp_path: Path) -> None:
    for name in ("stdout", "stderr"):
        Ring(str(tmp_path), name).write(name.encode())
    (tmp_path / "stdout.new").write_bytes(b"")
    assert _all(Ring(str(tmp_path), "stdout")) == (0, b"stdout")


def _said(line: Line, stream: str) -> bytes:
    """Return what a watcher was pushed of a stream, each byte once."""
    got = b""
    for push in line.pushed:
        if push.get("push") == "said" and push["s"] == stream:
            assert push["at"] == len(got)
            got += base64.b64decode(push["d"])
    return got


def _heard(line: Line, stream: str, wanted: bytes) -> None:
    while not _said(line, stream).endswith(wanted):
        line.read()


def test_a_preparation_is_heard_while_it_runs(vm: Vm) -> None:
    vm.serve(1)
    line = vm.line(watch=True)
    script = f"echo one; echo two >&2; until test -e {vm.home}/go; do sleep 0.02; done; echo three"
    line.ask("prepare", c=["sh", "-c", script], key="k")
    _heard(line, "stdout", b"one\n")
    _heard(line, "stderr", b"two\n")
    vm.home.joinpath("go").touch()
    _heard(line, "stdout", b"one\nthree\n")
    assert line.ask("prepare", c=["sh", "-c", script], key="k")["out"] == "one\ntwo\nthree\n"


def test_the_next_watcher_hears_what_was_not_acknowledged(vm: Vm) -> None:
    vm.serve(1)
    line = vm.line(watch=True)
    line.ask("prepare", c=["sh", "-c", "echo one; echo two"], key="k")
    _heard(line, "stdout", b"two\n")
    line.ask("said_ack", s="stdout", n=4)
    after = vm.line(watch=True)
    while not [p for p in after.pushed if p.get("push") == "said"]:
        after.read()
    [push] = [p for p in after.pushed if p.get("push") == "said"]
    assert (push["at"], base64.b64decode(push["d"])) == (4, b"two\n")
    assert not after.ask("said", s="other", offset=0)["ok"]
    assert not after.ask("said", s="stdout", offset="x")["ok"]
    assert base64.b64decode(after.ask("said", s="stdout", offset=2)["d"]) == b"e\ntwo\n"


def test_a_runners_log_is_said_too_and_outlives_it(vm: Vm) -> None:
    vm.serve(1)
    line = vm.line()
    with (vm.home / "runner.log").open("ab") as log:
        log.write(b"trouble\n")
    assert base64.b64decode(line.ask("said", s="stderr", offset=0)["d"]) == b"trouble\n"
    assert base64.b64decode(line.ask("said", s="stderr", offset=8)["d"]) == b""
    vm.kill()
    vm.serve(1)
    with (vm.home / "runner.log").open("ab") as log:
        log.write(b"again\n")
    line = vm.line()
    wait_until(
        lambda: base64.b64decode(line.ask("said", s="stderr", offset=0)["d"]).endswith(
            b"trouble\nagain\n"
        ),
        "the log is said",
    )
