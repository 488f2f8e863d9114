"""Transfers to and from URLs that break off: gone on with where they broke, and no byte twice."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import fsspec
import pytest

from remuda import reading, stores
from remuda.errors import DataStagingError, OutputNotAvailable
from tests.cutting import Cutting
from tests.stores import environment, gs_server, s3_server

SIZE = 5 << 20


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAUSES_S", (0.01, 0.02, 0.03))


class Web:
    """A web server that breaks off `breaks` answers in the middle, and counts what it sent."""

    def __init__(self) -> None:
        self.data, self.tag = os.urandom(SIZE), "one"
        self.breaks, self.ranges, self.sent, self.asked = 0, True, 0, 0
        self.refusals: list[int] = []
        self.piece = 0  # bytes until a break; 0: half of the answer
        web = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                web.asked += 1
                if web.refusals:
                    self.send_error(web.refusals.pop())
                    return
                data, begin = web.data, self.headers.get("Range")
                same = self.headers.get("If-Range") in (None, web.tag)
                if begin and same and web.ranges:
                    at = int(begin.removeprefix("bytes=").rstrip("-"))
                    self.send_response(206)
                    data = data[at:]
                    size = len(web.data)
                    self.send_header("Content-Range", f"bytes {at}-{size - 1}/{size}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                if web.tag:
                    self.send_header("ETag", web.tag)
                self.end_headers()
                if web.breaks:
                    web.breaks -= 1
                    data = data[: web.piece or len(data) // 2]
                self.wfile.write(data)
                web.sent += len(data)
                self.close_connection = True

            def do_PUT(self) -> None:
                web.asked += 1
                body = b""
                while (size := int(self.rfile.readline() or b"0", 16)) > 0:  # in chunks
                    body += self.rfile.read(size)
                    self.rfile.readline()
                if web.refusals:
                    self.send_error(web.refusals.pop())
                    return
                web.data = body
                self.send_response(201)
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/x"


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_a_download_goes_on_where_it_broke(web: Web, tmp_path: Path) -> None:
    web.breaks = 3
    stores.pull(web.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == web.data
    # What had come but was not read yet when a line broke may come again; all of it never does.
    assert web.asked == 4
    assert SIZE <= web.sent < 2 * SIZE


def test_a_server_without_ranges_is_read_anew_up_to_there(web: Web, tmp_path: Path) -> None:
    web.breaks, web.ranges = 1, False
    stores.pull(web.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == web.data
    assert web.asked == 2


def test_more_breaks_than_the_budget_as_long_as_it_moves(web: Web, tmp_path: Path) -> None:
    # What came but was not read yet when the line breaks is lost: at most 2 MiB and a bit.
    web.breaks, web.piece = 4, reading.PROGRESS + (3 << 20)
    web.data = os.urandom(5 * web.piece)
    stores.pull(web.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == web.data
    assert web.breaks == 0


def test_the_budget_is_spent_in_the_end(web: Web, tmp_path: Path) -> None:
    web.breaks, web.piece = 100, 1000
    with pytest.raises(DataStagingError, match=r"127\.0\.0\.1"):
        stores.pull(web.url, tmp_path / "x")
    assert web.asked == 4
    web.breaks, web.refusals = 0, [404, 503, 503]
    with pytest.raises(OutputNotAvailable):
        stores.pull(web.url, tmp_path / "x")
    assert web.refusals == []


@pytest.mark.parametrize("tag", ["two", ""])
def test_another_content_is_never_mixed_in(
    web: Web, tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one with another mark, nor one without any."""
    web.breaks, web.tag = 1, "one" if tag else ""
    reader = stores.reader_of(web.url)
    assert reader.read(1000) == web.data[:1000]
    web.data, web.tag = web.data[::-1], tag
    with pytest.raises(DataStagingError if tag else aiohttp.ClientError):
        list(iter(lambda: reader.read(1 << 20), b""))
    reader.close()


def test_an_upload_is_tried_again(web: Web, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"given")
    web.refusals = [503, 502]
    stores.push(tmp_path / "x", web.url)
    assert (web.data, web.asked) == (b"given", 3)
    web.refusals = [403]
    with pytest.raises(DataStagingError, match="403"):
        stores.push(tmp_path / "x", web.url)
    assert web.asked == 4


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest, cutting: Cutting) -> Iterator[str]:
    """A bucket behind a line that is cut at will."""
    name = "AWS_ENDPOINT_URL_S3" if request.param == "s3" else "STORAGE_EMULATOR_HOST"
    with s3_server() if request.param == "s3" else gs_server() as url:
        cutting.to = int(os.environ[name].rpartition(":")[2])
        with environment(**{name: f"http://127.0.0.1:{cutting.port}"}):
            kind: Any = fsspec.get_filesystem_class(request.param)
            kind.clear_instance_cache()
            yield url
            kind.clear_instance_cache()


@pytest.fixture
def cutting() -> Iterator[Cutting]:
    with Cutting() as made:
        yield made


def test_parts_of_objects_are_tried_again_each_for_itself(
    bucket: str, cutting: Cutting, tmp_path: Path
) -> None:
    data = os.urandom(40 << 20)
    (tmp_path / "x").write_bytes(data)
    # The emulator keeps part of a piece that broke off, unlike the real store; gcsfs sends all of it
    # again. So that line breaks before the first piece.
    cutting.cut(up_after=(32 << 20) if bucket.startswith("s3") else 500)
    stores.push(tmp_path / "x", f"{bucket}/x")
    assert cutting.cuts == 1
    # Up to three parts of 8 MiB were under way; all anew would be 72 MiB.
    assert cutting.up < len(data) + (26 << 20)
    cutting.cut(down_after=20 << 20)
    stores.pull(f"{bucket}/x", tmp_path / "back")
    assert cutting.cuts == 2
    assert cutting.down < len(data) + (10 << 20)
    back = (tmp_path / "back").read_bytes()
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (OSError("Socket is closed"), True),
        (OSError(errno.EHOSTUNREACH, "No route to host"), True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), False),
        (OSError("Failure"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
    ],
)
def test_what_may_pass(error: OSError, may_pass: bool) -> None:
    assert reading.passing(error) is may_pass
