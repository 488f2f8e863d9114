"""Beginnings of files: kept when cut short, one writer each, gone when done, given up or old."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from remuda.errors import DataStagingError, VmUnreachable
from remuda.partials import STALE_S, partial
from remuda.storage import Storage


def _begin(folder: Path, error: Exception) -> None:
    with partial(folder, "key") as stream:
        stream.write(b"begin")
        raise error


def _cut(folder: Path) -> None:
    with pytest.raises(VmUnreachable):
        _begin(folder, VmUnreachable("away"))


def test_what_is_cut_short_is_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "partial"
    _cut(folder)
    with partial(folder, "another") as stream:
        assert stream.read() == b""
    with partial(folder, "key") as stream:
        assert stream.read() == b"begin"
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    "error", [DataStagingError("damaged"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_what_is_given_up_is_gone(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(DataStagingError):
        _begin(tmp_path, error)
    assert os.listdir(tmp_path) == []


def test_two_never_write_one(tmp_path: Path) -> None:
    _cut(tmp_path)
    with partial(tmp_path, "key") as first:
        with partial(tmp_path, "key") as second:
            assert second.read() == b""
            second.write(b"second")
        assert first.read() == b"begin"
        first.write(b", end")
        first.flush()
        os.replace(first.name, tmp_path / "target")
        with partial(tmp_path, "key") as third:  # while the first still holds its lock
            assert third.read() == b""
            assert third.name == first.name
    assert os.listdir(tmp_path) == ["target"]
    assert (tmp_path / "target").read_bytes() == b"begin, end"


def test_what_nobody_came_for_is_removed_unless_it_is_written(tmp_path: Path) -> None:
    _cut(tmp_path)
    [lost] = tmp_path.iterdir()
    old = time.time() - STALE_S - 60
    os.utime(lost, (old, old))
    with partial(tmp_path, "other") as held:
        assert not lost.exists()
        os.utime(held.name, (old, old))
        with partial(tmp_path, "third"):
            assert Path(held.name).exists()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    _cut(tmp_path / "p")
    [path] = (tmp_path / "p").iterdir()
    path.unlink()
    path.symlink_to(precious)
    with pytest.raises(DataStagingError), partial(tmp_path / "p", "key"):
        pass
    assert precious.read_text() == "mine"


def _write_half(storage: Storage, folder: Path) -> None:
    with storage.writing("jobs/1/2/file/x", partials=folder) as stream:
        stream.write(b"begin")
        raise VmUnreachable("away")


@pytest.mark.parametrize("kind", ["folder", "memory", "two disks"])
def test_a_storage_goes_on(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(
        f"memory://{tmp_path.name}" if kind == "memory" else str(tmp_path / "storage")
    )
    folder = storage.partials or tmp_path / "state" / "partial"
    with pytest.raises(VmUnreachable):
        _write_half(storage, folder)
    replace = os.replace

    def refuse(source: str, target: Path) -> None:
        if Path(source).parent == folder:
            raise OSError(errno.EXDEV, "another disk")
        replace(source, target)

    if kind == "two disks":
        monkeypatch.setattr(os, "replace", refuse)
    with storage.writing("jobs/1/2/file/x", mode=0o755, partials=folder) as stream:
        assert stream.read() == b"begin"
        stream.write(b", end")
    url = storage.url("jobs/1/2/file/x")
    assert storage.read(url) == b"begin, end"
    assert os.listdir(folder) == []
    path = storage.local_path(url)
    assert path is None or os.access(path, os.X_OK)
