"""Serve the real Nova, its fake virt driver beneath, over TCP; prints the URL, ends with its stdin.

Runs in the environment of tools/test-openstack. Nova's wheel has the base of its functional tests: API,
conductor, scheduler, placement and compute in one process, over SQLite.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
import tempfile
import threading
import warnings
from typing import Any
from urllib.parse import parse_qsl

from nova.tests.functional import integrated_helpers  # isort: skip - patches what follows

from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from tests.openstack.around import PROJECT, Around

HUGE = {"name": "huge", "id": "huge", "ram": 512, "vcpus": 1, "disk": 10_000_000}


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class ServedNova(integrated_helpers._IntegratedTestBase):  # type: ignore[misc]
    """A functional test that lasts as long as it is wanted."""

    CAST_AS_CALL = False
    microversion = "latest"

    def setUp(self) -> None:
        """Start Nova, without a limit of time."""
        self.flags(compute_driver="fake.MediumFakeDriver")
        paste = os.path.join(sys.prefix, "etc", "nova", "api-paste.ini")
        self.flags(api_paste_config=paste, group="wsgi")
        super().setUp()

    def runTest(self) -> None:
        """Serve until stdin ends."""
        warnings.simplefilter("ignore")  # that of Nova's tests makes some of them errors
        self.admin_api.post_flavor({"flavor": HUGE})
        server = make_server("127.0.0.1", 0, lambda e, s: serve(e, s), _Server, _Quiet)
        around, nova = Around(f"http://127.0.0.1:{server.server_port}"), self.api_fixture.app()

        def serve(environ: dict[str, Any], start: Any) -> Any:
            size = int(environ.get("CONTENT_LENGTH") or 0)
            path = environ["PATH_INFO"]
            if not path.startswith(("/identity", "/image", "/network")):
                known = environ.get("HTTP_X_AUTH_TOKEN") in around.tokens
                if not known and path not in ("/", "/v2.1", "/v2.1/"):
                    start("401 Unauthorized", [("Content-Type", "application/json")])
                    return [b"{}"]
                environ.update(
                    HTTP_X_AUTH_USER="fake",
                    HTTP_X_AUTH_PROJECT_ID=PROJECT,
                    HTTP_X_ROLES="reader,member",
                )
                return nova(environ, start)
            body = json.loads(environ["wsgi.input"].read(size) or b"{}")
            query = dict(parse_qsl(environ.get("QUERY_STRING", "")))
            answer = around.answer(environ["REQUEST_METHOD"], path, query, body)
            assert answer is not None
            status, headers, content = answer
            start(f"{status} X", [("Content-Type", "application/json"), *headers.items()])
            return [json.dumps(content).encode()]

        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.write(OUT, f"{around.url}\n".encode())
        select.select([sys.stdin], [], [])  # lets other green threads run, unlike a read
        server.shutdown()


if __name__ == "__main__":
    OUT = os.dup(1)
    os.environ["OS_TEST_TIMEOUT"] = "0"
    folder = tempfile.mkdtemp(prefix="remuda-nova-")
    os.chdir(folder)
    case = ServedNova()
    result = case.run()
    for _, text in [*result.errors, *result.failures]:
        print(text, file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0 if result.wasSuccessful() else 1)
