"""A VM for tests of the runner: a home, real runner processes, and a plain client of its socket."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from remuda.workers.bundle import install
from remuda.workers.onvm.bridge import at_socket
from remuda.workers.onvm.processes import describe_process, environment, runner_pid
from remuda.workers.providers.local import remove_tree

DEADLINE_S = 20.0


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Return the first true value of the condition."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.002)
    return value


def wait_dead(*pids: int) -> None:
    """Wait for processes to end; a zombie has."""
    wait_until(lambda: not any(map(describe_process, pids)), f"{pids} are dead")


@lru_cache(maxsize=1)
def interpreters() -> dict[str, str]:
    """Return every Python from 3.7 up that is at hand, by version."""
    folders = [Path(p) for p in os.environ.get("PATH", "").split(":")]
    folders += (Path.home() / ".pyenv" / "versions").glob("*/bin")
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted(folder.glob("python3.*")) if folder.is_dir() else ():
            if re.fullmatch(r"python3\.\d+", path.name) and path.name[6:] not in found:
                done = subprocess.run(
                    [path, "-I", "-S", "-c", code], capture_output=True, text=True
                )
                version = done.stdout.strip()
                if version == path.name[6:] and int(version.split(".")[1]) >= 7:
                    found[version] = str(path)
    return dict(sorted(found.items(), key=lambda item: int(item[0].split(".")[1])))


def output(entry: dict[str, Any], key: str = "o") -> bytes:
    return base64.b64decode(entry.get(key, ""))


class Line:
    """A connection to a runner that keeps all it is pushed."""

    def __init__(self, where: Path | socket.socket, *, watch: bool = False, since: int = 0) -> None:
        """Speak to the runner of a home, or over a socket at whose other end one is."""
        if isinstance(where, Path):
            where = at_socket(str(where), "connect", DEADLINE_S)
        self.socket = where
        self.file = self.socket.makefile("rb")
        self.number = 0
        self.answers: dict[int, dict[str, Any]] = {}
        self.pushed: list[dict[str, Any]] = []
        self.entries: list[dict[str, Any]] = []
        self.hello = self.ask("hello", watch=watch, since=since)

    def post(self, do: str, **fields: Any) -> int:
        self.number += 1
        message = json.dumps({"id": self.number, "do": do, **fields})
        self.socket.sendall(message.encode() + b"\n")
        return self.number

    def read(self) -> None:
        line = self.file.readline()
        if not line:
            raise EOFError
        message = json.loads(line)
        if "re" in message:
            self.answers[message["re"]] = message
        else:
            self.pushed.append(message)
            self.entries += message.get("entries", ())

    def drain(self) -> None:
        """Read until the runner hangs up."""
        try:
            while True:
                self.read()
        except (EOFError, OSError):
            return

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        number = self.post(do, **fields)
        while number not in self.answers:
            self.read()
        return self.answers[number]

    def start(self, *jobs: dict[str, Any], floor: int = 0) -> dict[str, str]:
        answer = self.ask("start", floor=floor, jobs=jobs)
        assert answer["ok"], answer
        states: dict[str, str] = answer["states"]
        return states

    def exit(self, attempt: int) -> dict[str, Any]:
        """Wait for the attempt's exit entry."""
        while True:
            found = [e for e in self.entries if e["t"] == "exit" and e["a"] == attempt]
            if found:
                assert len(found) == 1
                return found[0]
            self.read()

    def started(self, attempt: int) -> dict[str, Any]:
        """Wait for the attempt's start entry."""
        while True:
            for entry in self.entries:
                if entry["t"] == "start" and entry["a"] == attempt:
                    return entry
            self.read()

    def run(self, attempt: int, *command: str, **fields: Any) -> dict[str, Any]:
        """Run a command to its end."""
        self.start(job(attempt, *command, **fields))
        return self.exit(attempt)

    def sh(self, attempt: int, script: str, **fields: Any) -> dict[str, Any]:
        return self.run(attempt, "/bin/sh", "-c", script, **fields)

    def wait_output(self, attempt: int) -> None:
        """Wait until a running job has written something."""
        wait_until(lambda: self.ask("peek", a=attempt, file="stdout")["size"], "output")

    def whole(self, attempt: int, name: str) -> bytes:
        """Read a file by peeks."""
        data = b""
        while True:
            answer = self.ask("peek", a=attempt, file=name, offset=len(data))
            assert answer["ok"], answer
            data += base64.b64decode(answer["data"])
            if len(data) >= answer["size"]:
                return data

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def job(attempt: int, *command: str, **fields: Any) -> dict[str, Any]:
    return {"a": attempt, "j": attempt, "e": 1, "c": list(command), **fields}


class Vm:
    """A home and the runners that serve it one after the other."""

    def __init__(self, home: Path, *, python: str = sys.executable) -> None:
        self.home, self.python = home, python
        self.lines: list[Line] = []

    def command(self, *words: str) -> list[str]:
        program = [self.python, "-I", "-S", "-X", "utf8", str(self.home / "runner.pyz")]
        return [*program, words[0], "--home", str(self.home), *words[1:]]

    def call(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"timeout": DEADLINE_S, "text": True, "capture_output": True, **options}
        return subprocess.run(self.command(*words), stdin=subprocess.DEVNULL, **options)

    def serve(self, slots: int = 2, *more: str) -> Vm:
        self.home.mkdir(parents=True, exist_ok=True)
        install(self.home / "runner.pyz")
        words = ["--slots", str(slots), "--name", "vm", "--heartbeat", "0.2", *more]
        done = self.call("serve", *words)
        assert (done.returncode, done.stdout) == (0, '{"ready":true}\n'), done
        return self

    def line(self, *, watch: bool = True, since: int = 0) -> Line:
        self.lines.append(Line(self.home, watch=watch, since=since))
        return self.lines[-1]

    @property
    def pid(self) -> int:
        return runner_pid(str(self.home))

    def kill(self) -> None:
        """Kill the runner as nothing can prevent."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        wait_dead(pid)

    def processes(self) -> list[int]:
        """Return what lives of this VM: the runner and its jobs."""
        home = os.fsencode(self.home)
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        jobs = [p for p in pids if environment(p, b"REMUDA_VM_HOME") == home]
        alive = [p for p in [*jobs, self.pid] if p and describe_process(p)]
        return sorted(set(alive))

    def boxes(self) -> list[str]:
        """Return the attempts' files the VM keeps."""
        return sorted(name for name in os.listdir(self.home / "jobs") if not name.startswith("_"))

    def wait_boxes(self, *names: str) -> None:
        """Wait until just these are kept."""
        wait_until(lambda: self.boxes() == sorted(names), f"only {names} is kept")

    def close(self) -> None:
        for line in self.lines:
            line.close()
        if (self.home / "runner.pyz").exists():
            done = self.call("stop")
            assert done.returncode == 0, done
        assert self.processes() == []
        if self.home.exists():
            remove_tree(self.home)  # pytest cannot, if it is deep


def a_vm(home: Path, **options: Any) -> Iterator[Vm]:
    """Give a VM that leaves no process."""
    vm = Vm(home, **options)
    try:
        yield vm
    finally:
        vm.close()
