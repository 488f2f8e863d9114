"""The embedded worker and beat: started once, found again, restarted, ended. With stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remuda.config import Settings, load_settings
from remuda.embedded import process_status, processes, start_processes, stop_processes
from remuda.embedded.daemon import Identity, alive, identify, read_pid_file
from remuda.errors import EmbeddedError

# Says in the file named by $NOTES who and what it is, then does $1.
STAND_IN = """
import os, signal, sys, time
with open(os.environ["NOTES"], "a") as notes:
    notes.write(f"{sys.argv[1]} {os.getpid()} {os.environ['REMUDA_DATA_DIR']} {os.getcwd()}\\n")
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork():
        print("stubborn", flush=True)
elif sys.argv[2] == "fail":
    sys.exit("it is broken")
while True:
    signal.pause()
"""
NAMES = ("beat", "worker")


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        threading.Event().wait(0.005)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    settings = load_settings(data_dir=tmp_path / "data", state_dir=tmp_path / "my stäte")
    yield settings
    stop_processes(settings, timeout_s=0.0, names=("worker", "beat", "broken"))


def stand_in(name: str, what: str = "run") -> tuple[str, ...]:
    return sys.executable, "-c", STAND_IN, name, what


def commands(what: str = "run") -> dict[str, tuple[str, ...]]:
    return {name: stand_in(name, what) for name in ("worker", "beat")}


def notes(count: int) -> list[list[str]]:
    """Wait for `count` lines; return their words."""
    file = Path(os.environ["NOTES"])
    until(lambda: file.exists() and file.read_text().count("\n") >= count)
    return [line.split(" ", 3) for line in file.read_text().splitlines()]


def pids(settings: Settings) -> dict[str, int]:
    return {found.name: found.pid for found in process_status(settings)}


def test_both_are_started_once_and_detached(settings: Settings) -> None:
    assert [(s.name, s.running) for s in process_status(settings)] == [
        ("worker", False),
        ("beat", False),
    ]
    for _ in range(2):
        start_processes(settings, commands=commands())
    run = str(settings.state_dir / "run")
    found = {name: (int(pid), data, cwd) for name, pid, data, cwd in notes(2)}
    assert len(notes(2)) == 2
    assert {name: pid for name, (pid, _, _) in found.items()} == pids(settings)
    for pid, data, cwd in found.values():
        assert (data, cwd) == (str(settings.data_dir), run)
        assert os.getsid(pid) == pid
        assert (
            int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) != os.getpid()
        )
    for status in process_status(settings):
        assert status.running
        assert 1 << 20 < status.rss_bytes < 200 << 20
        assert 0 <= status.cpu_s < 10


def test_stop_ends_both_and_may_be_repeated(settings: Settings) -> None:
    start_processes(settings, commands=commands())
    old = [identify(pid) for pid in pids(settings).values()]
    assert stop_processes(settings, timeout_s=20) == []
    assert not any(alive(process) for process in old)
    assert not any(status.running for status in process_status(settings))
    assert stop_processes(settings, timeout_s=20) == []
    start_processes(settings, commands=commands())
    assert all(status.running for status in process_status(settings))


def test_one_that_does_not_end_is_killed_with_its_children_and_named(settings: Settings) -> None:
    table = {"worker": stand_in("worker", "stubborn"), "beat": stand_in("beat")}
    start_processes(settings, commands=table)
    log = settings.state_dir / "log" / "worker.log"
    until(lambda: "stubborn" in log.read_text())
    worker = pids(settings)["worker"]
    assert len(_group(worker)) == 2
    assert stop_processes(settings, timeout_s=2.0) == ["worker"]
    until(lambda: not _group(worker))


def _group(leader: int) -> list[Identity]:
    found = [identify(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    return [p for p in found if p is not None and _pgid(p.pid) == leader]


def _pgid(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def test_a_killed_process_is_started_again_and_the_other_left(settings: Settings) -> None:
    start_processes(settings, commands=commands())
    old = pids(settings)
    os.kill(old["worker"], signal.SIGKILL)
    until(lambda: identify(old["worker"]) is None)
    assert [s.running for s in process_status(settings)] == [False, True]
    start_processes(settings, commands=commands())
    new = pids(settings)
    assert new["worker"] not in (0, old["worker"])
    assert new["beat"] == old["beat"]


def test_shells_starting_at_once_start_one_of_each(settings: Settings) -> None:
    code = """
        import ast, sys
        from remuda.config import load_settings
        from remuda.embedded import start_processes
        start_processes(load_settings(), commands=ast.literal_eval(sys.argv[1]))
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "REMUDA_DATA_DIR": str(settings.data_dir),
        "REMUDA_STATE_DIR": str(settings.state_dir),
    }
    shells = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), repr(commands())], env=environment
        )
        for _ in range(4)
    ]
    assert [shell.wait(timeout=60) for shell in shells] == [0] * 4
    assert sorted(line[0] for line in notes(2)) == sorted(NAMES)
    assert {line[0]: int(line[1]) for line in notes(2)} == pids(settings)


@pytest.mark.parametrize("content", ["", "garbage", "1 2 3", "another process"])
def test_a_stale_pid_file_is_no_obstacle_and_its_process_is_left(
    settings: Settings, content: str
) -> None:
    if content == "another process":  # the pid of a living one, but started at another time
        content = f"{os.getpid()} 1"
    pid_file = settings.state_dir / "run" / "worker.pid"
    pid_file.parent.mkdir(parents=True)
    pid_file.write_text(content)
    assert stop_processes(settings, timeout_s=0.0) == []
    pid_file.write_text(content)
    start_processes(settings, commands=commands())
    assert alive(read_pid_file(pid_file))


@pytest.mark.parametrize(
    ("argv", "reason"),
    [(("/no/such/command",), "not found"), ((sys.executable, "-c", "exit('sorry')"), "sorry")],
)
def test_a_command_that_ends_at_once_is_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], reason: str
) -> None:
    monkeypatch.setattr(processes, "_FIRST_LOOK_S", 20.0)
    with pytest.raises(EmbeddedError, match=rf"the broken ended at once: .*{reason}.*broken\.log"):
        start_processes(settings, commands={"broken": argv})


def test_an_unwritable_state_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    settings = load_settings(data_dir=tmp_path, state_dir=tmp_path / "state")
    with pytest.raises(EmbeddedError, match=r"not a directory|cannot write"):
        start_processes(settings, commands=commands())


def test_a_log_past_its_size_is_put_aside(settings: Settings) -> None:
    log = settings.state_dir / "log" / "worker.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"x" * ((10 << 20) + 1))
    start_processes(settings, commands=commands())
    assert log.stat().st_size < 10_000
    assert log.with_name("worker.log.1").exists()


def test_settings_are_passed_on_and_secrets_stay_out_of_argv(tmp_path: Path) -> None:
    url = "postgresql://me:secret@db/remuda"
    settings = load_settings(
        data_dir=tmp_path, state_dir=tmp_path, database_url=url, worker_concurrency=3
    )
    environment = processes._environment(settings)
    assert environment["REMUDA_DATABASE_URL"] == url
    assert environment["REMUDA_WORKER_CONCURRENCY"] == "3"
    assert environment["REMUDA_STATE_DIR"] == str(tmp_path)
    table = processes.default_commands(settings)
    assert list(table) == ["worker", "beat"]
    assert "secret" not in repr(table)
