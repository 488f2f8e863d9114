"""Large outputs go on in another worker process where one that was killed left off; over real sshd."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remuda.storage import Storage
from remuda.tasks.saving import Saver
from remuda.workers.session import Session
from tests.integration.test_ssh import Vm, no_connections_left
from tests.integration.test_ssh_transfers import SIZE, big, came
from tests.sshd import Sshd, sshd

__all__ = ["no_connections_left", "sshd"]

WORKER = """
import json, signal, sys
from tests.integration.test_ssh_resume import SIZE, save
from remuda.workers.session import Session
original = Session.pieces
def pieces(self, size):
    left = SIZE // 2
    for piece in original(self, size):
        yield piece
        left -= len(piece)
        if left <= 0:
            print("half", flush=True)
            signal.pause()
Session.pieces = pieces
save(*json.loads(sys.argv[1]))
"""


def save(address: dict[str, Any], storage_url: str, state_dir: str, url: str = "") -> Any:
    """Save the output of attempt 1 as a worker does; return its row."""
    from remuda.workers.backends import VmAddress, get_backend

    backend = get_backend("ssh")
    settings = SimpleNamespace(storage=storage_url, state_dir=Path(state_dir))
    links = SimpleNamespace(backend=lambda _: backend)
    runtime: Any = SimpleNamespace(settings=settings, links=links)
    vm = {"id": 1, "name": "vm", "backend": "ssh", "address": address, "state": "RUNNING"}
    channel = backend.connect(VmAddress(1, "vm", "ssh", address))
    row = {
        "job_id": 1,
        "attempt_id": 1,
        "array_index": None,
        "params": None,
        "outputs": [{"name": "out", "to": url}],
        "pending": {"files": {"out": SIZE}},
    }
    try:
        [saved] = Saver(runtime, vm, channel).save(row)
    finally:
        channel.close()
    return saved


@pytest.mark.parametrize("place", ["folder", "elsewhere"])
def test_another_process_goes_on(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path, file = big(tmp_path)
    vm = Vm(sshd)
    vm.run(vm.connect(), 1, "mv", "big", "out", inputs=(file,))
    elsewhere = place == "elsewhere"
    storage = Storage(f"memory://{tmp_path.name}" if elsewhere else str(tmp_path / "storage"))
    state = tmp_path / "state"
    folder = storage.partials or state / "partial"
    asked = (vm.address, storage.url("x").removesuffix("/x"), str(state))
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, json.dumps(asked)], stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "half\n"
        sizes = came(monkeypatch)
        if not elsewhere:  # while it lives, another writes a file of its own
            assert save(*asked)["size"] == sum(sizes) == SIZE
        worker.kill()
    [left] = folder.iterdir()
    done = left.stat().st_size
    assert SIZE // 2 - (1 << 20) <= done < SIZE
    sizes.clear()
    saved = save(*asked)
    assert sum(sizes) == SIZE - done
    assert storage.read(saved["url"]) == path.read_bytes()
    assert saved["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert os.listdir(folder) == []
    vm.end()


def test_what_proves_damaged_is_begun_again_once(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = big(tmp_path)
    vm = Vm(sshd)
    channel = vm.connect()
    vm.run(channel, 1, "mv", "big", "out", inputs=(file,))
    original, rounds = Session.pieces, []

    def damaging(self: Session, size: int) -> Iterator[bytes]:
        rounds.append(size)
        for piece in original(self, size):
            yield piece if len(rounds) > 1 else bytes(len(piece))

    monkeypatch.setattr(Session, "pieces", damaging)
    with (tmp_path / "back").open("w+b") as back:
        back.write(path.read_bytes()[: SIZE // 3])
        back.seek(0)
        assert vm.backend.fetch(channel, vm.vm, 1, "out", back) == SIZE
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert rounds == [SIZE - SIZE // 3, SIZE]
    channel.close()
    vm.end()
