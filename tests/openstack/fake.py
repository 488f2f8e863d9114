"""The fake OpenStack as a server of this process: real TCP, for the real SDK."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.openstack.around import Around
from tests.openstack.nova import FakeNova, fault


@dataclass
class FakeCloud:
    """What answers at `url`."""

    url: str
    around: Around
    nova: FakeNova


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: FakeCloud

    def _do(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        around, nova = self.cloud.around, self.cloud.nova
        path = parts.path.rstrip("/")
        found = around.answer(self.command, path, query, body)
        if found is None:
            known = self.headers.get("X-Auth-Token") in around.tokens
            if known or path == "/v2.1":
                status, content = nova.answer(self.command, f"{path}/", query, body)
            else:
                status, content = fault(401, "The request you have made requires authentication.")
            found = status, {}, content
        self._send(*found)

    def _send(self, status: int, headers: dict[str, str], content: dict[str, Any]) -> None:
        data = b"" if status == 204 else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_DELETE = do_PUT = do_HEAD = _do

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def fake_cloud() -> Iterator[FakeCloud]:
    """Serve a cloud."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    url = f"http://127.0.0.1:{server.server_port}"
    handler.cloud = FakeCloud(url, Around(url), FakeNova(url))  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield handler.cloud  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
