"""Files at sftp:// URLs, with a real server; no host is believed that is not known."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import paramiko
import pytest
from paramiko.sftp import CMD_READ

from remuda import reading, stores
from remuda.errors import DataStagingError, OutputNotAvailable
from remuda.storage import Storage
from tests.cutting import Cutting
from tests.sshd import Sshd, sshd

__all__ = ["sshd"]


@pytest.fixture
def url(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a folder; the user's configuration says how to log in."""
    home = tmp_path / "me"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "config").write_text(
        f"Host files\n  HostName {sshd.address}\n  Port {sshd.port}\n  User {sshd.user}\n"
        f"  IdentityFile {sshd.key_file}\n"
    )
    (home / ".ssh" / "known_hosts").write_text(f"[{sshd.address}]:{sshd.port} {sshd.host_key}\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return f"sftp://files{sshd.home}"


def test_files_come_and_go(url: str, sshd: Sshd, tmp_path: Path) -> None:
    data = os.urandom(5 << 20)
    source = tmp_path / "source"
    source.write_bytes(data)
    stores.push(source, f"{url}/deep/down/x")
    assert [path.name for path in (sshd.home / "deep" / "down").iterdir()] == ["x"]
    stores.pull(f"{url}/deep/down/x", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    first = stores.version_of(f"{url}/deep/down/x")
    source.write_bytes(b"other")
    stores.push(source, f"{url}/deep/down/x")
    assert (sshd.home / "deep/down/x").read_bytes() == b"other"
    assert stores.version_of(f"{url}/deep/down/x") != first
    with pytest.raises(OutputNotAvailable):
        stores.pull(f"{url}/none", tmp_path / "none")


def test_the_storage_on_a_server(url: str, tmp_path: Path) -> None:
    storage = Storage(f"{url}/storage")
    source = tmp_path / "source"
    source.write_bytes(b"content" * 1000)
    stored = storage.put_file(source)
    assert storage.put_file(source) == stored
    target = storage.download(stored.url, tmp_path / "target", sha256=stored.sha256)
    assert target.read_bytes() == source.read_bytes()
    with storage.writing("jobs/1/x") as stream:
        stream.write(b"0123456789")
    assert storage.read(storage.url("jobs/1/x"), offset=-3) == b"789"


def test_an_unknown_host_is_refused(
    url: str, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[BaseException] = []  # what else went wrong in passing, on a busy machine
    monkeypatch.setattr(reading, "wait", lambda _, error: again.append(error))
    known = Path(os.environ["HOME"]) / ".ssh" / "known_hosts"
    pinned = known.read_text()
    for tries, wrong in enumerate(
        ("", pinned.replace(sshd.host_key, "ssh-ed25519 " + "A" * 68)), 1
    ):
        known.write_text(wrong)
        with pytest.raises(DataStagingError):
            stores.pull(f"{url}/x", tmp_path / "x")
        # Nobody tries that again.
        assert sshd.log().count("Connection from") == tries + 1 + len(again)
        assert not [error for error in again if "host key" in str(error).lower()]
    assert "Accepted" not in sshd.log()


def test_a_broken_line_is_gone_on_with(
    url: str, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways, where it broke, over a new connection."""
    monkeypatch.setattr(reading, "PAUSES_S", (0.01,) * 3)
    config = tmp_path / "me" / ".ssh" / "config"
    known = tmp_path / "me" / ".ssh" / "known_hosts"
    data = os.urandom(12 << 20)
    (tmp_path / "x").write_bytes(data)
    with Cutting() as cutting:
        cutting.to = sshd.port
        config.write_text(config.read_text().replace(f"Port {sshd.port}", f"Port {cutting.port}"))
        known.write_text(f"[{sshd.address}]:{cutting.port} {sshd.host_key}\n")
        cutting.cut(up_after=6 << 20)
        stores.push(tmp_path / "x", f"{url}/x")
        assert (sshd.home / "x").read_bytes() == data
        assert [path.name for path in sshd.home.iterdir() if "x" in path.name] == ["x"]
        assert cutting.cuts == 1
        assert cutting.up < len(data) + (4 << 20)
        cutting.cut(down_after=6 << 20)
        stores.pull(f"{url}/x", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == data
        assert cutting.cuts == 2
        assert cutting.down < len(data) + (6 << 20)


def test_nothing_is_asked_for_twice(
    url: str, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the answers come faster than the questions are put."""
    asked: list[tuple[int, int]] = []
    original = paramiko.SFTPClient._async_request

    def slowly(self: Any, file: Any, kind: int, *rest: Any) -> Any:
        number = original(self, file, kind, *rest)
        if kind == CMD_READ:
            asked.append((int(rest[1]), rest[2]))
            time.sleep(0.002)
        return number

    monkeypatch.setattr(paramiko.SFTPClient, "_async_request", slowly)
    data = os.urandom(10 << 20)
    (sshd.home / "x").write_bytes(data)
    stores.pull(f"{url}/x", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert len(set(asked)) == len(asked)
    assert sum(size for _, size in asked) == len(data)
