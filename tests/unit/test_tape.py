"""What running jobs wrote is on the tape, and no more than that."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from remuda.workers.onvm.capture import Stream
from remuda.workers.onvm.tape import ENOUGH, RECORD, Tape, left_of


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "tape")


class Written:
    """An output with a tape, as the runner has them."""

    def __init__(self, tape: Tape, box: str, attempt: int, which: int = 0) -> None:
        self.tape, self.key = tape, (attempt, which)
        self.stream = Stream(box + (".err" if which else ".out"), 1 << 20)

    def __del__(self) -> None:
        self.stream.close()

    def write(self, data: bytes) -> None:
        os.write(self.stream.inner, data)
        self.stream.pull()
        self.tape.fresh[self.stream] = self.key

    def end(self) -> None:
        self.stream.handed_over()
        self.stream.finish(1 << 16)
        self.tape.forget(self.stream)


def test_what_was_written_piece_by_piece(path: str) -> None:
    tape = Tape(path)
    tape.begin()
    assert not os.path.exists(path)  # nothing to record, nothing done
    tape.commit()
    assert not os.path.exists(path)
    out, err, over = (Written(tape, path, *key) for key in ((7, 0), (7, 1), (8, 0)))
    out.write(b"one ")
    over.write(b"reported")
    over.end()
    tape.commit()
    err.write(b"oh")
    out.write(b"two")
    tape.commit()
    out.write(b" unrecorded")
    found = Tape(path)
    assert found.left == {(7, 0): b"one two", (7, 1): b"oh"}
    assert left_of(path, 7, found) == {
        "os": 7, "o": base64.b64encode(b"one two").decode(),
        "es": 2, "er": base64.b64encode(b"oh").decode(),
    }  # fmt: skip
    assert left_of(path, 8, found) == {}
    found.begin()
    assert Tape(path).left == {}


def test_cut_short_anywhere_it_tells_what_it_can(path: str) -> None:
    tape = Tape(path)
    out = Written(tape, path, 1)
    for text in (b"abc", b"def"):
        out.write(text)
        tape.commit()
    whole = Path(path).read_bytes()
    assert len(whole) == 2 * RECORD.size + 6
    seen = set()
    for size in range(len(whole) + 1):
        Path(path).write_bytes(whole[:size] + bytes(2 * RECORD.size))  # as after a power cut
        found = Tape(path).left.get((1, 0), b"")
        Path(path).write_bytes(whole[:size])
        short = Tape(path).left.get((1, 0), b"")
        assert b"abcdef".startswith(short)
        assert found.startswith(short)
        seen.add(short)
    assert seen == {b"abcdef"[:n] for n in range(7)}


def test_it_stays_short(path: str) -> None:
    """However much is written by however many, only what is needed is kept for long."""
    tape = Tape(path)
    lasting = Written(tape, path, 1)
    lasting.write(b"lasting")
    tape.commit()
    for attempt in range(2, 90):
        passing = Written(tape, path, attempt)
        passing.write(bytes(40_000))
        tape.commit()
        assert os.path.getsize(path) < 2 * ENOUGH
        assert Tape(path).left[1, 0] == b"lasting"
        assert len(Tape(path).left[attempt, 0]) == 40_000
        passing.end()
    assert len(tape.live) == 1


def test_a_long_output_is_in_its_file_alone(path: str) -> None:
    tape = Tape(path)
    out = Written(tape, path, 3)
    out.write(bytes(60_000))
    tape.commit()
    out.write(b"x" * 30_000)
    tape.commit()
    found = Tape(path)
    assert len(found.left[3, 0]) == 60_000
    assert left_of(path, 3, found) == {"os": 90_000, "osp": True, "box": True}
    os.truncate(path + ".out", 1000)  # killed while it filled the file
    assert left_of(path, 3, found)["os"] == 60_000


def test_a_full_disk_costs_the_tape_not_the_runner(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape = Tape(path)
    out = Written(tape, path, 4)
    out.write(b"first ")
    tape.commit()
    real, left = os.write, [3]

    def full(fd: int, data: bytes) -> int:
        if fd != tape.fd:
            return real(fd, data)
        if not left[0]:
            raise OSError(28, "No space left on device")
        done = real(fd, data[: left[0]])
        left[0] = 0
        return done

    out.write(b"second")
    monkeypatch.setattr(os, "write", full)
    tape.commit()
    assert Tape(path).left == {(4, 0): b"first "}
    left[0] = 1000
    tape.commit()
    assert Tape(path).left == {(4, 0): b"first second"}
