"""What attempts wrote whose runner was killed: kept however short, its cut marked however long."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vm import Vm, a_vm, job, output, wait_until


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    yield from a_vm(tmp_path / "vm")


def test_what_a_lost_attempt_wrote_is_kept_as_far_as_it_was_long(vm: Vm) -> None:
    line = vm.serve().line()
    line.start(job(1, "sh", "-c", "seq 50000; exec sleep 1000"), job(2, "sleep", "1000"))
    line.started(2)
    wait_until(lambda: (vm.home / "jobs" / "1.out").exists(), "long output")
    vm.kill()
    again = vm.serve().line()
    entry = again.exit(1)
    assert (entry["why"], entry["osp"], entry["box"]) == ("LOST", True, True)
    kept = again.whole(1, "stdout")
    assert len(kept) == entry["os"] > 0
    assert kept == b"".join(b"%d\n" % n for n in range(1, 50001))[: len(kept)]
    assert "box" not in again.exit(2)
    again.ask("free", a=[1])
    vm.wait_boxes()


def test_what_a_lost_attempt_wrote_is_kept_however_short(vm: Vm) -> None:
    """Both streams, several pieces; also when the second runner is killed before it told."""
    script = (
        "echo one; echo oh >&2; while [ ! -e more ]; do sleep 0.01; done; echo two; exec sleep 99"
    )
    line = vm.serve(3).line()
    assert not (vm.home / "tape").exists()
    line.run(9, "true")
    assert not (vm.home / "tape").exists()
    line.start(job(1, "sh", "-c", script, out=[["x", True]]), job(2, "sh", "-c", "sleep 99"))
    line.wait_output(1)
    (vm.home / "jobs" / "1" / "more").touch()
    for name, text in (("stdout", b"one\ntwo\n"), ("stderr", b"oh\n")):
        wait_until(lambda: line.whole(1, name) == text, "all of it")  # noqa: B023
    vm.kill()
    vm.serve(3)
    vm.kill()
    again = vm.serve(3).line()
    entry = again.exit(1)
    assert (entry["why"], output(entry), output(entry, "er")) == ("LOST", b"one\ntwo\n", b"oh\n")
    assert (entry["os"], entry["es"], entry.get("osp")) == (8, 3, None)
    assert "o" not in again.exit(2)
    assert again.sh(3, "echo three")["why"] == "OK"


def test_of_a_lost_attempts_huge_output_the_cut_is_marked(vm: Vm) -> None:
    line = vm.serve().line()
    limit = 1 << 20
    line.start(job(1, "sh", "-c", "seq 1000000; echo end >&2; exec sleep 99", limit=limit))
    whole = "".join(f"{n}\n" for n in range(1, 1000001)).encode()
    size = len(whole)
    wait_until(lambda: line.ask("peek", a=1, file="stdout")["size"] == size, "all of it")
    vm.kill()
    again = vm.serve().line()
    entry = again.exit(1)
    kept = again.whole(1, "stdout")
    begin, end, total = entry["cut"]["stdout"]
    assert (total, len(kept)) == (len(whole), limit)
    assert kept == b"%b\n[remuda: the middle of %d bytes was cut out here]\n%b" % (
        whole[:begin], total, whole[end:],
    )  # fmt: skip
    assert vm.boxes() == ["1.out"]
    for offset, at in (
        (0, 0),
        (begin - 1, begin - 1),
        (begin, end),
        (end - 1, end),
        (total, total),
    ):
        answer = again.ask("peek", a=1, file="stdout", offset=offset, size=50, written=True)
        data = base64.b64decode(answer["data"])
        assert (answer["at"], data) == (at, whole[at : at + 50][: len(data)])
        assert data or at == total
