"""The cache of inputs on a VM: each content once, none taken away that is needed."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from remuda.errors import DataStagingError
from remuda.workers.cache import FORGOTTEN_S, Cache
from remuda.workers.onvm.sandbox import copy_in


def _fetcher(data: bytes, calls: list[Path]):  # type: ignore[no-untyped-def]
    def fetch(path: Path) -> None:
        calls.append(path)
        path.write_bytes(data)

    return fetch


def _use(link: Path, tmp_path: Path) -> bytes:
    """Copy an input into a sandbox, as the runner does."""
    box = tmp_path / "box"
    shutil.rmtree(box, ignore_errors=True)
    box.mkdir()
    copy_in(str(box), "x", str(link), 0o644)
    return (box / "x").read_bytes()


def _age(home: Path, key: str, by_s: float) -> None:
    when = time.time() - by_s
    os.utime(home / "cache" / key, (when, when))


def _entries(home: Path) -> list[str]:
    return sorted(p.name for p in (home / "cache").iterdir() if "." not in p.name and p.is_file())


def test_many_jobs_one_download(tmp_path: Path) -> None:
    calls: list[Path] = []
    links: list[Path] = []
    fetch = _fetcher(b"content", calls)

    def some() -> None:
        links.extend(Cache(tmp_path).link("abc", fetch) for _ in range(25))

    threads = [threading.Thread(target=some) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(set(links)) == 200
    for link in links:
        assert _use(link, tmp_path) == b"content"
    assert list((tmp_path / "cache" / "once").iterdir()) == []
    assert _entries(tmp_path) == ["abc"]


def test_what_was_used_longest_ago_goes_but_nothing_in_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=250)
    calls: list[Path] = []
    needed = cache.link("a", _fetcher(b"a" * 100, calls))
    for number, key in enumerate("bc"):
        _use(cache.link(key, _fetcher(b"x" * 100, calls)), tmp_path)
        _age(tmp_path, key, 1000 - number)
    _age(tmp_path, "a", 2000)
    link = cache.link("d", _fetcher(b"d" * 100, calls))
    assert _entries(tmp_path) == ["a", "d"]
    assert _use(needed, tmp_path) == b"a" * 100
    _use(link, tmp_path)
    _use(cache.link("e", _fetcher(b"e" * 200, calls)), tmp_path)
    assert "a" not in _entries(tmp_path)
    assert len(calls) == 5


def test_a_failed_fetch_leaves_nothing_and_the_next_tries_again(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise DataStagingError("the line broke")

    cache = Cache(tmp_path)
    with pytest.raises(DataStagingError, match="the line broke"):
        cache.link("a", fail)
    assert _entries(tmp_path) == []
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.suffix == ".part"] == []
    assert cache.link("a", _fetcher(b"whole", [])).read_bytes() == b"whole"


def test_links_nobody_came_for_are_swept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    link = cache.link("a", _fetcher(b"x", []))
    _age(tmp_path, "a", FORGOTTEN_S + 10)
    cache.link("b", _fetcher(b"x", []))
    assert not link.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataStagingError, match="cache"):
        Cache(tmp_path).link("a", _fetcher(b"x", []))
