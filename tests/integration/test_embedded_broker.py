"""Celery over the `filesystem://` broker: real worker processes, remote control, events, kills."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from remuda.broker import register
from remuda.broker.spool import Spool

APP = """
import os, time
from celery import Celery
from remuda.broker import register

register()
app = Celery("tiny", broker="filesystem://")
app.conf.update(
    broker_transport_options={"folder": os.environ["FOLDER"]},
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
)

def write(path, text):
    with open(path, "a") as file:
        file.write(text + "\\n")

@app.task
def note(path, text):
    write(path, text)

@app.task
def hold(path, text, gate):
    write(path, text)
    while not os.path.exists(gate):
        time.sleep(0.01)
    write(path, f"{text} done")
"""


def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, "condition not met in time"
        threading.Event().wait(0.01)
    return result


class Bench:
    """A folder, a tiny Celery app over it, and its workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = folder / "broker"
        self.broker.mkdir()
        (folder / "tiny.py").write_text(APP)
        register()
        self.app = Celery("tiny", broker="filesystem://", set_as_current=False)
        self.app.conf.update(
            broker_transport_options={"folder": str(self.broker)}, task_ignore_result=True
        )
        self.log = folder / "log"
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, name: str = "one", *options: str) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        environment = {
            **os.environ,
            "FOLDER": str(self.broker),
            "PYTHONPATH": os.pathsep.join([str(self.folder), root]),
        }
        argv = ["worker", "-n", f"{name}@test", "--without-mingle", "--without-gossip", *options]
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tiny", *argv],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.workers.append(process)
        return process

    def ready(self, *names: str) -> None:
        """Wait until exactly these workers answer."""
        wanted = {f"{name}@test" for name in names}
        ping = self.app.control.inspect(timeout=1.0).ping
        until(lambda: set(ping() or {}) == wanted)

    def send(self, name: str, *arguments: object) -> str:
        task_id: str = self.app.send_task(f"tiny.{name}", [str(a) for a in arguments]).id
        return task_id

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def close(self) -> None:
        for process in self.workers:
            process.kill()
            process.wait(timeout=20)
        self.app.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


THREADS = ("--pool=threads", "--concurrency=2")


def test_remote_control(bench: Bench) -> None:
    bench.worker("one", *THREADS)
    bench.worker("two", *THREADS)
    bench.ready("one", "two")
    inspect = bench.app.control.inspect(timeout=1.0)
    until(lambda: set(inspect.stats() or {}) == {"one@test", "two@test"})
    one = bench.app.control.inspect(["one@test"], timeout=20.0)
    assert "tiny.note" in one.registered()["one@test"]
    replies = bench.app.control.inspect(["two@test"], timeout=20.0).ping()
    assert replies == {"two@test": {"ok": "pong"}}
    # Nothing is left of the callers' reply queues.
    assert [q for q in os.listdir(bench.broker / "queues") if "reply" in q] == []


def test_the_command_line_reaches_the_workers(bench: Bench) -> None:
    bench.worker("one", *THREADS)
    bench.ready("one")
    environment = {**os.environ, "FOLDER": str(bench.broker), "PYTHONPATH": os.getcwd()}
    words = ["inspect", "--destination", "one@test", "--timeout", "30", "ping"]
    command = [sys.executable, "-m", "celery", "-A", "tiny", *words]
    done = subprocess.run(
        command,
        cwd=bench.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "one@test: OK" in done.stdout


def test_events_reach_every_listener(bench: Bench) -> None:
    bench.worker("one", *THREADS, "--task-events")
    bench.ready("one")
    seen: list[list[str]] = [[], []]
    listening = [threading.Event(), threading.Event()]

    def listen(number: int) -> None:
        with bench.app.connection_for_read() as connection:
            receiver = bench.app.events.Receiver(
                connection, handlers={"*": lambda event: seen[number].append(event["type"])}
            )
            events = receiver.itercapture(limit=None, timeout=20, wakeup=False)
            listening[number].set()
            for _ in events:
                if "task-succeeded" in seen[number]:
                    return

    listeners = [threading.Thread(target=listen, args=(number,)) for number in (0, 1)]
    for listener in listeners:
        listener.start()
    until(lambda: len(_event_queues(bench)) == 2)
    bench.send("note", bench.log, "x")
    for listener in listeners:
        listener.join(timeout=30)
        assert not listener.is_alive()
    for types in seen:
        assert {"task-received", "task-started", "task-succeeded"} <= set(types)
    until(lambda: not _event_queues(bench))


def _event_queues(bench: Bench) -> list[str]:
    return [q for q in os.listdir(bench.broker / "queues") if q.startswith("celeryev")]


def test_a_revoked_task_does_not_start(bench: Bench) -> None:
    bench.worker("one", "--pool=threads", "--concurrency=1")
    bench.ready("one")
    gate = bench.folder / "gate"
    bench.send("hold", bench.log, "first", gate)
    until(lambda: bench.lines() == ["first"])
    revoked = bench.send("note", bench.log, "revoked")
    bench.app.control.revoke(revoked)
    one = bench.app.control.inspect(["one@test"], timeout=20.0)
    until(lambda: revoked in one.revoked()["one@test"])
    gate.touch()
    bench.send("note", bench.log, "last")
    until(lambda: "last" in bench.lines())
    assert bench.lines() == ["first", "first done", "last"]


def test_a_killed_workers_messages_go_to_another(bench: Bench) -> None:
    victim = bench.worker("one", *THREADS)
    bench.ready("one")
    gate = bench.folder / "gate"
    for text in "ab":
        bench.send("hold", bench.log, text, gate)
    until(lambda: sorted(bench.lines()) == ["a", "b"])
    victim.kill()
    victim.wait(timeout=20)
    gate.touch()
    bench.worker("two", *THREADS)
    until(lambda: {"a done", "b done"} <= set(bench.lines()))
    assert sorted(bench.lines()) == ["a", "a", "a done", "b", "b", "b done"]
    bench.ready("two")  # and the dead worker's mailbox is gone
    assert not Spool(bench.broker).exists("one@test.celery.pidbox")


@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
def test_workers_share_a_queue(bench: Bench, pool: str) -> None:
    for name in ("one", "two"):
        bench.worker(name, f"--pool={pool}", "--concurrency=2")
    bench.ready("one", "two")
    for number in range(200):
        bench.send("note", bench.log, number)
    until(lambda: len(bench.lines()) >= 200)
    assert sorted(bench.lines(), key=int) == [str(number) for number in range(200)]


def test_a_warm_shutdown_is_quick_and_gives_back_what_was_not_begun(bench: Bench) -> None:
    worker = bench.worker("one", "--pool=threads", "--concurrency=1")
    bench.ready("one")
    gate = bench.folder / "gate"
    bench.send("hold", bench.log, "first", gate)
    until(lambda: bench.lines() == ["first"])
    for number in range(3):
        bench.send("note", bench.log, number)
    worker.terminate()
    gate.touch()
    started = time.monotonic()
    assert worker.wait(timeout=20) == 0
    assert time.monotonic() - started < 5
    done = bench.lines()
    assert done[:2] == ["first", "first done"]
    assert len(Spool(bench.broker).names("celery")) == 5 - len(done)
