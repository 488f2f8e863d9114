"""The storage: content-addressed inputs, nothing half written, the same through fsspec."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import storage as module
from remuda.errors import ConfigError, DataStagingError, OutputNotAvailable
from remuda.files import copy_file, sha256_of
from remuda.storage import Storage


@pytest.fixture(params=["file", "path", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """A storage in a directory with an unusual name, by URL or path, or behind fsspec."""
    home = tmp_path / "a b%23#?ü" / "storage"
    if request.param == "memory":
        yield Storage(f"memory://{tmp_path.name}")
        import fsspec

        fsspec.filesystem("memory").store.clear()
    else:
        yield Storage(home.as_uri() if request.param == "file" else str(home))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file whose time of change is long ago."""
    path = tmp_path / "source"
    path.write_bytes(b"content" * 1000)
    _age(path)
    return path


def _age(path: Path) -> None:
    os.utime(path, (1_000_000_000, 1_000_000_000))


def _parts(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


def test_a_file_comes_back_as_it_was(storage: Storage, source: Path, tmp_path: Path) -> None:
    source.chmod(0o754)
    stored = storage.put_file(source)
    assert stored.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (stored.size, stored.mode) == (7000, 0o754)
    assert stored.url.endswith(f"inputs/{stored.sha256[:2]}/{stored.sha256}")
    target = tmp_path / "deep" / "down" / "target"
    storage.download(stored.url, target, mode=0o500, sha256=stored.sha256)
    assert target.read_bytes() == source.read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == 0o500
    assert not _parts(tmp_path)


def test_the_same_content_is_kept_once(storage: Storage, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(source.read_bytes())
    assert storage.put_file(source).url == storage.put_file(other).url


def test_an_unchanged_file_is_not_read_again(
    storage: Storage, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RACY_S", -1e9)
    reads: list[int] = []

    def counted(file: int) -> str:
        reads.append(file)
        return sha256_of(file)

    monkeypatch.setattr(module, "sha256_of", counted)
    first = storage.put_file(source)
    count = len(reads)
    assert storage.put_file(source) == first
    assert len(reads) == count
    source.write_bytes(b"CONTENT" * 1000)
    assert storage.put_file(source).sha256 != first.sha256


def test_a_file_changed_just_now_is_read_again(storage: Storage, tmp_path: Path) -> None:
    path = tmp_path / "fresh"
    urls = set()
    for letter in "abc":  # within one tick of the file system's clock, and of one size
        path.write_text(letter)
        urls.add(storage.put_file(path).url)
    assert len(urls) == 3


def test_a_blob_that_is_gone_is_stored_again(source: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    stored = storage.put_file(source)
    blob = storage.local_path(stored.url)
    assert blob is not None
    blob.unlink()
    assert storage.put_file(source) == stored
    assert blob.exists()


def test_a_file_that_keeps_changing_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path / "storage"))

    def copy(source_fd: int, target_fd: int) -> None:
        source.write_bytes(os.urandom(8))
        copy_file(source_fd, target_fd)

    monkeypatch.setattr(module, "copy_file", copy)
    with pytest.raises(DataStagingError, match="changes while it is read"):
        storage.put_file(source)
    assert not [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]


def test_what_cannot_be_an_input_is_named(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(DataStagingError, match=r"no input file 'in\.csv'"):
        storage.put_file(tmp_path / "missing", name="in.csv")
    with pytest.raises(DataStagingError, match="is a directory"):
        storage.put_file(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataStagingError, match="no regular file"):
        storage.put_file(pipe)
    with pytest.raises(DataStagingError, match="no input file"):
        storage.put_file(tmp_path / "source" / "below")


def test_writing_is_all_or_nothing(storage: Storage) -> None:
    key = "jobs/1/2/file/deep/a b#%?ü"
    with storage.writing(key) as target:
        target.write(b"first")
    with pytest.raises(RuntimeError):
        _write_and_fail(storage, key)
    assert storage.read(storage.url(key)) == b"first"
    assert storage.size(key) == 5
    with storage.writing(key) as target:
        target.write(b"third")
    assert storage.read(storage.url(key)) == b"third"


def _write_and_fail(storage: Storage, key: str) -> None:
    with storage.writing(key) as target:
        target.write(b"second")
        raise RuntimeError


def test_parts_can_be_read(storage: Storage) -> None:
    with storage.writing("jobs/1/stdout") as target:
        target.write(b"0123456789")
    url = storage.url("jobs/1/stdout")
    assert storage.read(url, offset=3, size=4) == b"3456"
    assert storage.read(url, offset=-3) == b"789"
    assert storage.read(url, offset=-99) == b"0123456789"
    assert storage.read(url, offset=99) == b""


def test_what_is_not_there_is_not_available(storage: Storage, tmp_path: Path) -> None:
    url = storage.url("jobs/9/none")
    with pytest.raises(OutputNotAvailable):
        storage.read(url)
    with pytest.raises(OutputNotAvailable):
        storage.size("jobs/9/none")
    with pytest.raises(OutputNotAvailable):
        storage.download(url, tmp_path / "out" / "x")
    assert not (tmp_path / "out" / "x").exists()


@pytest.mark.parametrize("key", ["", "/etc/x", "../x", "a/../../x", "a\0"])
def test_a_key_stays_inside(storage: Storage, key: str) -> None:
    with pytest.raises(DataStagingError):
        storage.url(key)


def test_a_damaged_file_is_not_handed_on(source: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    stored = storage.put_file(source)
    blob = storage.local_path(stored.url)
    assert blob is not None
    blob.write_bytes(b"x" * stored.size)
    target = tmp_path / "target"
    target.write_text("before")
    with pytest.raises(DataStagingError, match="damaged"):
        storage.download(stored.url, target, sha256=stored.sha256)
    assert target.read_text() == "before"
    assert not _parts(tmp_path)


def test_a_download_replaces_a_link_not_what_it_points_to(source: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    precious = tmp_path / "precious"
    precious.write_text("mine")
    target = tmp_path / "target"
    target.symlink_to(precious)
    storage.download(storage.put_file(source).url, target)
    assert precious.read_text() == "mine"
    assert target.read_bytes() == source.read_bytes()


def _write_to_a_full_disk(storage: Storage, data: bytes) -> None:
    with storage.writing("x") as target, Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), target.fileno())
        target.write(data)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_full_disk_is_told(tmp_path: Path, size: int) -> None:
    with pytest.raises(DataStagingError, match="No space left") as caught:
        _write_to_a_full_disk(Storage(str(tmp_path / "storage")), b"x" * size)
    assert caught.value.hint
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_the_storage_is_private_when_new(source: Path, tmp_path: Path) -> None:
    Storage(str(tmp_path / "new" / "storage")).put_file(source)
    assert stat.S_IMODE((tmp_path / "new" / "storage").stat().st_mode) == 0o700


def test_wrong_urls_are_named() -> None:
    with pytest.raises(ConfigError, match="another host"):
        Storage("file://elsewhere/x")
    with pytest.raises(ConfigError, match="storage_url"):
        Storage("nonsense://x")


def test_large_files_and_the_slow_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(5 << 20)
    path = tmp_path / "large"
    path.write_bytes(data)
    for number, available in enumerate([True, False]):
        if not available:

            def refuse(*_: object) -> int:
                raise OSError(errno.EXDEV, "not here")

            monkeypatch.setattr(os, "copy_file_range", refuse)
        storage = Storage(str(tmp_path / f"storage{number}"))
        target = storage.download(storage.put_file(path).url, tmp_path / f"target{number}")
        assert target.read_bytes() == data


def test_many_at_once_store_one_file(tmp_path: Path, source: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(Storage(storage._base).put_file(source).url))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert storage.read(found[0]) == source.read_bytes()
