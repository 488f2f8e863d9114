"""Files to and from hosts: cut off and gone on with, checked, within little memory; over real sshd."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from remuda.errors import DataStagingError, OutputNotAvailable, VmUnreachable
from remuda.workers import transfers
from remuda.workers.backends import InputFile
from remuda.workers.content import Content
from remuda.workers.session import Session
from tests.integration.test_ssh import Vm, no_connections_left
from tests.sshd import Sshd, sshd

__all__ = ["no_connections_left", "sshd"]

MIB = 1 << 20
SIZE = 12 * MIB


class Stream:
    """A real file; `then` is called once so many bytes went through it. Counts all of them."""

    def __init__(self, file: BinaryIO, after: float, then: Callable[[], None]) -> None:
        self.file, self.after, self.then, self.moved = file, after, then, 0

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def moves(self, size: int) -> None:
        self.moved += size
        if self.moved >= self.after:
            self.after = float("inf")
            self.then()

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.moves(len(data))
        return data

    def write(self, data: bytes) -> int:
        self.moves(len(data))
        return self.file.write(data)


@pytest.fixture
def streams(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[float, Callable[[], None]], list[Stream]]:
    """Watch what is read of inputs: give (after, then) for the next of them."""
    opened: list[Stream] = []
    plan: list[tuple[float, Callable[[], None]]] = []
    original = Content.opened

    def watching(self: Content, at: int) -> Any:
        after, then = plan.pop() if plan else (float("inf"), lambda: None)
        opened.append(Stream(original(self, at), after, then))
        return opened[-1]

    def next_one(after: float, then: Callable[[], None]) -> list[Stream]:
        plan.append((after, then))
        return opened

    monkeypatch.setattr(Content, "opened", watching)
    return next_one


def came(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that will have the size of everything that comes from hosts."""
    sizes: list[int] = []
    original = Session.pieces

    def counting(self: Session, size: int) -> Iterator[bytes]:
        for piece in original(self, size):
            sizes.append(len(piece))
            yield piece

    monkeypatch.setattr(Session, "pieces", counting)
    return sizes


def big(folder: Path, name: str = "big") -> tuple[Path, InputFile]:
    """Return a file of random bytes, and as an input."""
    path = folder / name
    path.write_bytes(os.urandom(SIZE))
    return path, InputFile(
        "big", path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest(), SIZE
    )


class TestInputs:
    @pytest.mark.parametrize("known", [True, False])
    def test_goes_on_where_it_was_cut_off(
        self, sshd: Sshd, tmp_path: Path, streams: Any, known: bool
    ) -> None:
        path, file = big(tmp_path)
        if not known:
            file = InputFile("big", path.as_uri())
        vm = Vm(sshd)
        opened = streams(SIZE // 2, sshd.kill)
        with pytest.raises(VmUnreachable):
            vm.backend.source(file, vm.vm)
        sshd.start()
        there = Path(vm.backend.source(file, vm.vm))
        assert there.read_bytes() == path.read_bytes()
        assert os.listdir(there.parent) == [there.name]
        assert len(opened) == 2
        if known:
            assert opened[1].moved < SIZE * 0.9
        vm.end()

    def test_a_wrong_beginning_is_given_up(self, sshd: Sshd, tmp_path: Path, streams: Any) -> None:
        path, file = big(tmp_path)
        vm = Vm(sshd)
        cache = Path(vm.address["home"]) / "cache"
        cache.mkdir(0o700)
        (cache / f"{file.sha256}.part").write_bytes(b"junk" * 1000)
        opened = streams(0, lambda: None)
        assert Path(vm.backend.source(file, vm.vm)).read_bytes() == path.read_bytes()
        assert [stream.moved for stream in opened] == [SIZE - 4000, SIZE]
        vm.end()

    def test_another_content_than_announced_is_no_input(self, sshd: Sshd, tmp_path: Path) -> None:
        path, file = big(tmp_path)
        path.write_bytes(b"x" * SIZE)
        vm = Vm(sshd)
        channel = vm.connect()
        end = vm.run(channel, 1, "true", inputs=(file,))
        assert end["why"] == "STAGING"
        assert os.listdir(Path(vm.address["home"]) / "cache") == []
        channel.close()
        vm.end()

    def test_one_that_changes_is_no_input(self, sshd: Sshd, tmp_path: Path, streams: Any) -> None:
        path, _ = big(tmp_path)
        vm = Vm(sshd)

        def change() -> None:
            with path.open("ab") as more:
                more.write(b"more")

        streams(SIZE // 2, change)
        there = Path(vm.backend.source(InputFile("big", path.as_uri()), vm.vm))
        assert not there.exists()
        vm.end()

    def test_executable_bits(self, sshd: Sshd, tmp_path: Path) -> None:
        script = tmp_path / "script"
        script.write_text("#!/bin/sh\ncp script copy\n")
        vm = Vm(sshd)
        channel = vm.connect()
        files = (InputFile("script", script.as_uri(), mode=0o755),)
        assert vm.run(channel, 1, "./script", inputs=files)["why"] == "OK"
        assert os.access(Path(vm.address["home"]) / "jobs/1/copy", os.X_OK)
        channel.close()
        vm.end()


class TestOutputs:
    def test_goes_on_where_it_was_cut_off(
        self, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, file = big(tmp_path)
        vm = Vm(sshd)
        vm.run(vm.connect(), 1, "mv", "big", "out", inputs=(file,))
        monkeypatch.setattr(transfers, "WINDOW", 1 << 18)  # what may be under way when it is cut
        sizes = came(monkeypatch)
        channel = vm.backend.connect(vm.vm)
        with (
            (tmp_path / "back").open("w+b") as back,
            pytest.raises(VmUnreachable),
        ):
            vm.backend.fetch(channel, vm.vm, 1, "out", Stream(back, SIZE // 2, sshd.kill))  # type: ignore[arg-type]
        (tmp_path / "back").unlink()
        first = sum(sizes)
        assert SIZE // 2 <= first < SIZE
        sshd.start()
        channel = vm.backend.connect(vm.vm)
        assert vm.backend.fetch(channel, vm.vm, 1, "out", tmp_path / "again") == SIZE
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
        assert sum(sizes) == SIZE
        assert sorted(os.listdir(tmp_path)) == ["again", "big"]
        channel.close()
        vm.end()

    def test_another_file_is_begun_anew(
        self, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transfers, "WINDOW", 1 << 18)
        path, file = big(tmp_path)
        vm = Vm(sshd)
        vm.run(vm.connect(), 1, "mv", "big", "out", inputs=(file,))
        channel = vm.backend.connect(vm.vm)
        with (tmp_path / "back").open("w+b") as back, pytest.raises(VmUnreachable):
            vm.backend.fetch(channel, vm.vm, 1, "out", Stream(back, SIZE // 2, sshd.kill))  # type: ignore[arg-type]
        with (Path(vm.address["home"]) / "jobs/1/out").open("r+b") as there:
            there.write(b"another")
        sshd.start()
        channel = vm.backend.connect(vm.vm)
        assert vm.backend.fetch(channel, vm.vm, 1, "out", tmp_path / "again") == SIZE
        assert (tmp_path / "again").read_bytes() == b"another" + path.read_bytes()[7:]
        channel.close()
        vm.end()

    def test_a_target_that_is_no_file(self, sshd: Sshd, tmp_path: Path) -> None:
        path, file = big(tmp_path)
        vm = Vm(sshd)
        channel = vm.connect()
        vm.run(channel, 1, "sh", "-c", "cat big; mv big out", inputs=(file,))
        for name in ("./out", "stdout"):
            back = BytesIO()
            assert vm.backend.fetch(channel, vm.vm, 1, name, back) == SIZE
            assert back.getvalue() == path.read_bytes()
        channel.close()
        vm.end()

    def test_what_leads_out_of_the_sandbox_is_no_output(self, sshd: Sshd, tmp_path: Path) -> None:
        path, _ = big(tmp_path)
        vm = Vm(sshd)
        channel = vm.connect()
        vm.run(channel, 1, "ln", "-s", str(path), "out")
        host, home = sshd.entry(), vm.address["home"]
        for name in ("out", "./out", "../../runner.json", "../2/x", "/etc/passwd", "no"):
            with pytest.raises(OutputNotAvailable):
                vm.backend.fetch(channel, vm.vm, 1, name, tmp_path / "back")
            from remuda.hosts import host_of

            with pytest.raises(OutputNotAvailable):
                transfers.get(host_of(host), home, 1, name, BytesIO())
        assert not (tmp_path / "back").exists()
        channel.close()
        vm.end()

    def test_a_target_that_is_full(self, sshd: Sshd, tmp_path: Path) -> None:
        _, file = big(tmp_path)
        vm = Vm(sshd)
        channel = vm.connect()
        vm.run(channel, 1, "mv", "big", "out", inputs=(file,))
        with (
            pytest.raises(DataStagingError, match="No space left"),
            open("/dev/full", "wb", 0) as full,
        ):
            vm.backend.fetch(channel, vm.vm, 1, "out", full)
        channel.close()
        vm.end()


SCRIPT = """
import json, resource, sys, threading
from pathlib import Path
from remuda.workers.backends import InputFile, StartJob, VmAddress, get_backend
address, source, sha256, size, back = json.loads(sys.argv[1])
ended = threading.Event()
vm, backend = VmAddress(1, "vm", "ssh", address), get_backend("ssh")
heard = lambda _, m: any(e["t"] == "exit" for e in m.get("entries", ())) and ended.set()
channel = backend.connect(vm, watch=True, on_push=heard)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
file = InputFile("in", source, sha256, size)
job = StartJob(1, 1, 1, ("mv", "in", "out"), inputs=(file,))
backend.submit_jobs(channel, vm, [job], floor=1)
assert ended.wait(60)
assert backend.fetch(channel, vm, 1, "out", Path(back)) == size
print(peak() - before)
"""


def test_large_files_need_little_memory(sshd: Sshd, tmp_path: Path) -> None:
    """Neither here, measured, nor there, where python3 cannot have more than 64 MiB at all."""
    size = 300 * MIB
    sshd.kill()
    sshd.configure(f"SetEnv HOME={sshd.home} PATH={sshd.folder}/bin:/usr/bin:/bin")
    (sshd.folder / "bin").mkdir()
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    script = f'#!/bin/sh\nulimit -d {64 * 1024}\nexec {python} "$@"\n'
    (sshd.folder / "bin/python3").write_text(script)
    (sshd.folder / "bin/python3").chmod(0o755)
    sshd.start()
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.truncate(size)
        file.write(os.urandom(MIB))
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    vm = Vm(sshd)
    asked = json.dumps([vm.address, source.as_uri(), sha256, size, str(tmp_path / "back")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, asked], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 * MIB
    with (tmp_path / "back").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == sha256
    vm.end()
