"""The cache of inputs on hosts: each content sent once, the limit kept, nothing needed given up."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from remuda.workers import transfers
from remuda.workers.backends import InputFile, StartJob
from remuda.workers.backends import ssh as backend
from tests.integration.test_ssh import Vm, no_connections_left
from tests.sshd import Sshd, sshd
from tests.unit.vm import wait_until

__all__ = ["no_connections_left", "sshd"]

SIZE = 1 << 20


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that will have the hash of each content sent to a host."""
    found: list[str] = []
    original = transfers._send

    def counting(question: Any, opened: Any, at: int, sha256: str) -> None:
        found.append(sha256)
        original(question, opened, at, sha256)

    monkeypatch.setattr(transfers, "_send", counting)
    return found


def an_input(folder: Path, name: str, size: int = SIZE) -> InputFile:
    path = folder / name
    path.write_bytes(os.urandom(size))
    return InputFile(name, path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest(), size)


def cached(vm: Vm) -> set[str]:
    return set(os.listdir(Path(vm.address["home"]) / "cache"))


def test_a_thousand_jobs_with_one_input(sshd: Sshd, tmp_path: Path, sent: list[str]) -> None:
    vm = Vm(sshd)
    channel = vm.connect()
    del sent[:]  # the runner
    file = an_input(tmp_path, "data", 20_000)
    command = ("cmp", "data", str(tmp_path / "data"))
    jobs = [StartJob(n, n, 1, command, inputs=(file,)) for n in range(1, 1001)]
    with ThreadPoolExecutor(4) as pool:
        parts = [jobs[i::4] for i in range(4)]
        list(pool.map(lambda part: vm.backend.submit_jobs(channel, vm.vm, part, floor=1), parts))
    wait_until(lambda: len(vm.told("exit")) >= 1000, "all end")
    assert {e["why"] for e in vm.told("exit")} == {"OK"}
    assert sent == [file.sha256]
    channel.close()
    vm.end()


def test_several_workers_send_it_once(sshd: Sshd, tmp_path: Path, sent: list[str]) -> None:
    vm = Vm(sshd)
    file = an_input(tmp_path, "data")
    del sent[:]
    workers = [backend.SshBackend() for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        paths = set(pool.map(lambda worker: worker.source(file, vm.vm), workers))
    assert len(paths) == 1
    assert sent == [file.sha256]
    assert cached(vm) == {file.sha256}
    vm.end()


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken for used just now."""
    monkeypatch.setattr(backend, "FRESH_S", -1.0)
    monkeypatch.setattr(backend, "GRACE_S", -1.0)


def test_the_limit_is_kept(sshd: Sshd, tmp_path: Path, sent: list[str], forgetful: None) -> None:
    vm = Vm(sshd, cache_bytes=3 * SIZE + 100)
    files = [an_input(tmp_path, f"in{i}") for i in range(5)]
    for file in files[:3]:
        vm.backend.source(file, vm.vm)
    vm.backend.source(files[0], vm.vm)  # now in1 is what was used longest ago
    assert cached(vm) == {file.sha256 for file in files[:3]}
    vm.backend.source(files[3], vm.vm)
    assert cached(vm) == {files[i].sha256 for i in (0, 2, 3)}
    vm.backend.source(files[4], vm.vm)
    assert cached(vm) == {files[i].sha256 for i in (0, 3, 4)}
    vm.backend.source(files[1], vm.vm)
    assert cached(vm) == {files[i].sha256 for i in (1, 3, 4)}
    vm.end()


def test_what_was_asked_for_lately_stays(sshd: Sshd, tmp_path: Path) -> None:
    vm = Vm(sshd, cache_bytes=1)
    files = [an_input(tmp_path, f"in{i}") for i in range(3)]
    for file in files:
        vm.backend.source(file, vm.vm)
    assert cached(vm) == {file.sha256 for file in files}
    vm.end()


def test_what_a_queued_job_needs_stays(
    sshd: Sshd, tmp_path: Path, sent: list[str], forgetful: None
) -> None:
    vm = Vm(sshd, cache_bytes=1)
    channel = vm.connect()
    del sent[:]
    gate = sshd.home / "gate"
    wait = ("sh", "-c", f"until [ -e {gate} ]; do sleep 0.02; done")
    needed, other, last = (an_input(tmp_path, name) for name in ("needed", "other", "last"))
    blockers = [StartJob(n, n, 1, wait) for n in (1, 2)]
    vm.backend.submit_jobs(channel, vm.vm, blockers, floor=1)
    queued = StartJob(3, 3, 1, ("test", "-s", "needed"), inputs=(needed,))
    assert vm.backend.submit_jobs(channel, vm.vm, [queued], floor=1)[3] == "queued"
    vm.backend.source(other, vm.vm)
    vm.backend.source(last, vm.vm)
    assert cached(vm) == {needed.sha256, last.sha256}
    gate.touch()
    assert vm.exit(3)["why"] == "OK"
    vm.backend.source(other, vm.vm)
    assert cached(vm) == {other.sha256}
    channel.close()
    vm.end()


@contextmanager
def serving() -> Iterator[tuple[str, dict[str, Any]]]:
    """Serve one content at a URL; change it by the mapping, which counts what was got."""
    content: dict[str, Any] = {"data": b"first", "tag": "1", "got": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.command == "GET":
                content["got"] += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(content["data"])))
            self.send_header("ETag", f'"{content["tag"]}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content["data"])

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/some/data?x=1/2", content
        finally:
            server.shutdown()
            thread.join()


def test_a_url_is_fetched_again_only_when_it_changed(sshd: Sshd, sent: list[str]) -> None:
    pytest.importorskip("aiohttp")
    vm = Vm(sshd)
    del sent[:]
    with serving() as (url, content):
        file = InputFile("data", url)
        paths = [vm.backend.source(file, vm.vm) for _ in range(3)]
        assert Path(paths[0]).read_bytes() == b"first"
        assert (len(set(paths)), len(sent)) == (1, 1)
        content.update(data=b"second, longer", tag="2")
        path = vm.backend.source(file, vm.vm)
        assert Path(path).read_bytes() == b"second, longer"
        assert (path in paths, len(sent)) == (False, 2)
    assert not Path(vm.backend.source(InputFile("data", url + "&y"), vm.vm)).exists()
    vm.end()
