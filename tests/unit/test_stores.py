"""Files at URLs: an S3 server and an HTTP server on this machine, and what goes wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from remuda import reading, stores
from remuda.errors import ConfigError, DataStagingError, OutputNotAvailable
from remuda.storage import Storage, validate_urls
from tests.stores import gs_server, s3_server

SECRET = "X-Amz-Signature=very-secret"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a new bucket."""
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    """The URL of a new bucket."""
    with gs_server() as url:
        yield url


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> str:
    """The URL of a bucket at one kind of store after the other."""
    return str(request.getfixturevalue(request.param))


class Web:
    """What an HTTP server has, and what was asked of it."""

    def __init__(self) -> None:
        """Have nothing."""
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = False
        self.marks = True
        web = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.send()

            def do_GET(self) -> None:
                data = self.send()
                self.wfile.write(data[: len(data) // 2] if web.cut else data)

            def send(self) -> bytes:
                path = unquote(self.path.partition("?")[0])
                web.asked.append(f"{self.command} {path}")
                data = web.files.get(path)
                self.send_response(404 if data is None else 200 if path != "/shut" else 403)
                self.send_header("Content-Length", str(len(data or b"")))
                if web.marks:
                    self.send_header("ETag", hashlib.md5(data or b"").hexdigest())
                self.end_headers()
                return data or b""

            def do_PUT(self) -> None:
                body = b""
                while (size := int(self.rfile.readline(), 16)) > 0:  # in chunks
                    body += self.rfile.read(size)
                    self.rfile.readline()
                web.files[self.path] = body
                self.send_response(201)
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is tried again at once."""
    monkeypatch.setattr(reading, "PAUSES_S", (0.0,) * 3)


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_http_files_come_and_go(web: Web, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    web.files["/a b"] = data
    stores.pull(f"{web.url}/a%20b?{SECRET}", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
    stores.push(tmp_path / "x", f"{web.url}/put")
    assert web.files["/put"] == data
    assert stores.size_of(f"{web.url}/put") == len(data)


def test_what_goes_wrong_is_told_without_the_signature(web: Web, tmp_path: Path) -> None:
    web.files["/shut"] = b"x"
    with pytest.raises(DataStagingError, match="403") as caught:
        stores.pull(f"{web.url}/shut?{SECRET}", tmp_path / "x")
    assert "very-secret" not in str(caught.value)
    with pytest.raises(OutputNotAvailable, match="nothing at") as gone:
        stores.pull(f"{web.url}/none?{SECRET}", tmp_path / "x")
    assert "very-secret" not in str(gone.value)
    web.files["/half"] = b"x" * 100_000
    web.cut = True
    with pytest.raises(DataStagingError):
        stores.pull(f"{web.url}/half", tmp_path / "x")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DataStagingError, match=str(port)):
        stores.pull(f"http://127.0.0.1:{port}/x", tmp_path / "x")
    with pytest.raises(DataStagingError, match=str(port)):  # not: there is nothing
        stores.version_of(f"http://127.0.0.1:{port}/x")
    with pytest.raises(DataStagingError, match="403") as caught:
        stores.size_of(f"{web.url}/shut?{SECRET}")
    assert "very-secret" not in str(caught.value)


def test_a_download_that_breaks_off_leaves_nothing(web: Web, tmp_path: Path) -> None:
    web.files["/half"] = b"x" * 100_000
    web.cut = True
    storage = Storage(str(tmp_path / "storage"))
    target = tmp_path / "target"
    target.write_text("before")
    with pytest.raises(DataStagingError):
        storage.download(f"{web.url}/half", target)
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_version_changes_with_the_content(web: Web) -> None:
    web.files["/x"] = b"one"
    first = stores.version_of(f"{web.url}/x")
    assert stores.version_of(f"{web.url}/x") == first
    web.files["/x"] = b"two"
    assert stores.version_of(f"{web.url}/x") != first
    web.asked.clear()
    with stores.one_batch():
        assert len({stores.version_of(f"{web.url}/x") for _ in range(10)}) == 1
    assert len(web.asked) == 1


def test_which_urls_can_be_staged() -> None:
    assert validate_urls(
        ["/local", "file:///x", "s3://b/k", "http://h/x", "https://h/", "sftp://h/x"]
    )
    assert validate_urls([])
    for wrong in ("ftp://h/x", "memory://x", "://", "s3a://b/k", "x::s3://b/k"):
        assert not validate_urls(["/local", wrong])


def test_a_store_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(_: str) -> Any:
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    assert not validate_urls(["gs://b/k"])
    with pytest.raises(ConfigError, match="gcsfs") as caught:
        stores.file_system("gs://b/k")
    assert caught.value.hint == "pip install 'remuda[gs]'"


def test_a_server_that_only_hangs_up_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAUSES_S", (0.01, 0.02))
    met: list[Any] = []

    def hang_up() -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, address = server.accept()
                met.append(address)
                caller.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(DataStagingError, match="sftp"):
            stores.pull(f"sftp://me@127.0.0.1:{port}/x", tmp_path / "x")
        server.shutdown(socket.SHUT_RDWR)
    assert len(met) >= 3


def test_the_storage_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    storage = Storage(f"{bucket}/deep/storage")
    source = tmp_path / "source"
    data = os.urandom(20 << 20)  # in several parts
    source.write_bytes(data)
    source.chmod(0o755)
    stored = storage.put_file(source)
    assert storage.put_file(source) == stored
    assert (stored.size, stored.mode) == (len(data), 0o755)
    target = storage.download(stored.url, tmp_path / "t", mode=0o700, sha256=stored.sha256)
    assert target.read_bytes() == data
    assert storage.read(stored.url, offset=-3) == data[-3:]
    assert storage.read(stored.url, offset=7, size=5) == data[7:12]
    key = "jobs/1/2/file/a b#%?ü/x"
    for text in (b"first", b"second"):
        with storage.writing(key) as stream:
            stream.write(text)
        assert storage.read(storage.url(key)) == text
        assert storage.size(key) == len(text)
    with pytest.raises(RuntimeError):
        _write_and_fail(storage, key)
    assert storage.read(storage.url(key)) == b"second"
    for url in (storage.url("jobs/none"), f"{bucket}-none/x"):
        with pytest.raises(OutputNotAvailable):
            storage.download(url, tmp_path / "none")
    with pytest.raises(DataStagingError, match="damaged"):
        storage.download(stored.url, tmp_path / "none", sha256="0" * 64)
    assert not (tmp_path / "none").exists()


def _write_and_fail(storage: Storage, key: str) -> None:
    with storage.writing(key) as target:
        target.write(b"third")
        raise RuntimeError


def test_objects_have_versions(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("one")
    stores.push(tmp_path / "x", f"{bucket}/v/x")
    first = stores.version_of(f"{bucket}/v/x")
    (tmp_path / "x").write_text("two")
    stores.push(tmp_path / "x", f"{bucket}/v/x")
    assert stores.version_of(f"{bucket}/v/x") != first
