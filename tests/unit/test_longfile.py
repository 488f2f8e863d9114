"""Outputs too long for memory: read while they grow, cut at the end, found after a kill."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remuda.workers.onvm.longfile import NOTE, LongFile
from tests.examples import examples

HALF = 100


def text(size: int) -> bytes:
    """Bytes that differ from each other wherever one looks."""
    return b"".join(b"%06d\n" % n for n in range(size // 7 + 1))[:size]


def written(path: Path, sizes: list[int]) -> LongFile:
    long = LongFile(str(path), HALF)
    whole = text(sum(sizes))
    for size in sizes:
        data, whole = whole[:size], whole[size:]
        while data:
            data = data[long.write(data) :]
    return long


def expected(size: int) -> tuple[bytes, list[int] | None]:
    """What is kept of so many bytes, and what was cut out."""
    whole, note = text(size), NOTE % size
    if size <= 2 * HALF:
        return whole, None
    to = size - HALF + len(note)
    return whole[:HALF] + note + whole[to:], [HALF, to, size]


@settings(max_examples=examples(60))
@given(st.lists(st.integers(1, 170), max_size=12), st.integers(0, 1500), st.integers(1, 400))
def test_what_is_kept_is_right_at_any_moment(sizes: list[int], offset: int, size: int) -> None:
    """While it grows, at its end, and for the runner after one that was killed."""
    whole = text(sum(sizes))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a").mkdir()
        long = written(folder / "a" / "out", sizes)
        at, data = long.read(offset, size)
        assert data == whole[at : at + len(data)]
        gap = len(whole) > 3 * HALF
        end = HALF if gap and at < HALF else len(whole)
        assert len(data) == max(0, min(size, end - at))
        if at > offset:
            assert offset >= HALF
            assert len(whole) - at >= HALF
        shutil.copytree(folder / "a", folder / "b")
        found = LongFile.found(str(folder / "b" / "out"))
        for one in (long, found):
            kept, cut = expected(len(whole))
            assert one.finish() == cut
            assert Path(one.path).read_bytes() == kept
            for path in one.litter:
                os.unlink(path)
            assert os.listdir(Path(one.path).parent) == ["out"]


def test_killed_while_it_is_cut(tmp_path: Path) -> None:
    """After any write of the last cut the files still tell what they hold."""
    for total in (250, 330, 777):
        steps = 0
        while True:
            folder = tmp_path / f"{total}-{steps}"
            folder.mkdir()
            long = written(folder / "out", [total])
            long.head = Dying(long.head, steps)
            try:
                long.finish()
                break
            except InterruptedError:
                steps += 1
            found = LongFile.found(str(folder / "out"))
            kept, cut = expected(total)
            assert (found.finish(), (folder / "out").read_bytes()) == (cut, kept)
        assert steps > 1


class Dying:
    """A file whose writer is killed at one of its changes."""

    def __init__(self, file: object, left: int) -> None:
        self.file, self.left = file, left

    def __getattr__(self, name: str) -> object:
        if name in ("write", "truncate"):
            if not self.left:
                raise InterruptedError
            self.left -= 1
        return getattr(self.file, name)


def test_never_more_than_it_may_take(tmp_path: Path) -> None:
    long = written(tmp_path / "out", [])
    for _ in range(100):
        data = text(90)
        while data:
            data = data[long.write(data) :]
        taken = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert taken <= 3 * HALF
    with pytest.raises(FileNotFoundError):
        LongFile.found(str(tmp_path / "none"))
