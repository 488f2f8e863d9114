"""`remuda run`: bytes as they are, the command's own exit code, signals that cancel."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from remuda.cli import connect, run
from remuda.cli.app import root
from remuda.cli.output import write_whole
from remuda.errors import NoResources, RemudaError
from remuda.spec import JobSpec

Chunks = Callable[["FakeClient"], Iterator[tuple[str, bytes]]]


@dataclass
class FakeJob:
    """How the job ends."""

    reason: str = "OK"
    exit_code: int | None = 0
    signal: int | None = None
    message: str | None = None
    id: int = 7

    delivered: list[Path] = field(default_factory=list)

    def wait(self) -> FakeJob:
        return self

    def results(self, to: Path, *, overwrite: bool) -> dict[str, Path]:
        assert overwrite
        self.delivered.append(to)
        return {}


@dataclass
class FakeClient:
    """Runs nothing: its job's output is what `chunks` yields."""

    job: FakeJob = field(default_factory=FakeJob)
    chunks: Chunks = lambda client: iter(())
    error: Exception | None = None
    submitted: list[tuple[JobSpec, str | None]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def submit(self, spec: JobSpec, *, pool: str | None) -> FakeJob:
        if self.error is not None:
            raise self.error
        self.submitted.append((spec, pool))
        return self.job

    def follow(self, job: FakeJob) -> Iterator[tuple[str, bytes]]:
        assert job is self.job
        return self.chunks(self)

    def cancel(self, jobs: list[FakeJob]) -> int:
        assert jobs == [self.job]
        self.job.reason, self.job.exit_code, self.job.signal = "CANCELLED", None, 15
        self.cancelled.set()
        return 1


def remuda(monkeypatch: pytest.MonkeyPatch, client: FakeClient, *arguments: str) -> Result:
    @contextmanager
    def opened(*, start: bool = True) -> Iterator[Any]:
        yield client

    monkeypatch.setattr(connect, "open_client", opened)
    return CliRunner().invoke(root, ["run", *arguments], prog_name="remuda")


def test_output_passes_through_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = bytes(range(256)) * 300, b"\xff\x00warn\n"
    client = FakeClient(chunks=lambda _: iter([("stdout", out), ("stderr", err), ("stdout", out)]))
    result = remuda(monkeypatch, client, "--", "cat", "-n")
    assert (result.exit_code, result.stdout_bytes, result.stderr_bytes) == (0, out + out, err)
    spec, pool = client.submitted[0]
    assert (list(spec.command), spec.follow, pool) == (["cat", "-n"], True, None)


def test_options_become_the_spec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    client = FakeClient()
    options = """--pool sim --cores 2 --memory 512M --walltime 1h30m --input b.txt=a.txt --env A=b=c
        --output x.csv --optional-output y.csv --name fit --retries 3 --priority -5"""
    assert remuda(monkeypatch, client, *options.split(), "fit", "--flag").exit_code == 0
    spec, pool = client.submitted[0]
    assert pool == "sim"
    assert list(spec.command) == ["fit", "--flag"]
    assert (spec.cores, spec.memory_bytes, spec.walltime_s) == (2, 512 << 20, 5400)
    assert (spec.name, spec.retries, spec.priority) == ("fit", 3, -5)
    assert dict(spec.environment or {}) == {"A": "b=c"}
    assert str(spec.output_dir) == str(tmp_path)
    assert client.job.delivered == [tmp_path]


def test_outputs_of_a_failed_command_are_delivered_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = FakeClient(FakeJob("NONZERO", 3))
    folder = tmp_path / "out"
    options = ["--output", "x.csv", "--output-dir", str(folder), "fit"]
    assert remuda(monkeypatch, client, *options).exit_code == 3
    assert client.job.delivered == [folder]


@pytest.mark.parametrize(
    ("job", "code", "told"),
    [
        (FakeJob(), 0, ""),
        (FakeJob("NONZERO", 3), 3, ""),
        (FakeJob("NONZERO", 200), 200, ""),
        (FakeJob("NONZERO", 127, message="command not found: x"), 127,
         "remuda: command not found: x\n"),
        (FakeJob("SIGNALLED", None, 9), 137, ""),
        (FakeJob("WALLTIME", None, 15), 124,
         "remuda: the walltime is over, the command was ended\n"),
        (FakeJob("OUT_OF_MEMORY", None, 9), 137, "remuda: job 7 ended: OUT_OF_MEMORY\n"),
        (FakeJob("CANCELLED", None, 15), 143, "remuda: job 7 ended: CANCELLED\n"),
        (FakeJob("CANCELLED", None), 125,
         "remuda: error: job 7 ended: CANCELLED\nhint: `remuda job show 7` tells more\n"),
        (FakeJob("STAGING", 0, message="x.csv is missing"), 125,
         "remuda: error: job 7 ended: STAGING: x.csv is missing\n"
         "hint: `remuda job show 7` tells more\n"),
        (FakeJob("LOST", None), 125,
         "remuda: error: job 7 ended: LOST\nhint: `remuda job show 7` tells more\n"),
    ],
)  # fmt: skip
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, job: FakeJob, code: int, told: str) -> None:
    result = remuda(monkeypatch, FakeClient(job), "true")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", told)


@pytest.mark.parametrize("error", [RemudaError("broken"), NoResources("never"), KeyError("bug")])
def test_own_failures_are_125(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    result = remuda(monkeypatch, FakeClient(error=error), "true")
    assert result.exit_code == 125
    assert result.stderr.startswith("remuda: error: ")


@pytest.mark.parametrize("wrong", [(), ("--memory", "x", "true"), ("--nope", "true"), ("--", "")])
def test_a_wrong_usage_is_125_too(monkeypatch: pytest.MonkeyPatch, wrong: tuple[str, ...]) -> None:
    client = FakeClient()
    result = remuda(monkeypatch, client, *wrong)
    assert (result.exit_code, client.submitted) == (125, [])
    assert result.stderr.startswith("remuda: error: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_job(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    def chunks(client: FakeClient) -> Iterator[tuple[str, bytes]]:
        yield "stdout", b"before"
        os.kill(os.getpid(), number)
        assert client.cancelled.wait(20)
        yield "stdout", b" and after"

    before = signal.getsignal(number)
    result = remuda(monkeypatch, FakeClient(chunks=chunks), "sleep", "9")
    assert (result.exit_code, result.stdout) == (128 + number, "before and after")
    assert signal.getsignal(number) == before


def test_a_command_that_ends_well_in_spite_of_a_signal_has_ended_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def chunks(client: FakeClient) -> Iterator[tuple[str, bytes]]:
        os.kill(os.getpid(), signal.SIGINT)
        assert client.cancelled.wait(20)
        client.job.reason, client.job.exit_code, client.job.signal = "OK", 0, None
        yield from ()

    assert remuda(monkeypatch, FakeClient(chunks=chunks), "server").exit_code == 0


class Left(BaseException):
    """Stands for the end of the process."""


def leaving(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Left

    monkeypatch.setattr(os, "_exit", leave)
    return codes


def test_a_second_ctrl_c_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def chunks(client: FakeClient) -> Iterator[tuple[str, bytes]]:
        os.kill(os.getpid(), signal.SIGINT)
        assert client.cancelled.wait(20)
        os.kill(os.getpid(), signal.SIGINT)
        yield "stdout", b"never"

    codes = leaving(monkeypatch)
    with pytest.raises(Left):
        remuda(monkeypatch, FakeClient(chunks=chunks), "sleep", "9")
    assert codes == [130]


def test_keep_leaves_the_job_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def chunks(client: FakeClient) -> Iterator[tuple[str, bytes]]:
        os.kill(os.getpid(), signal.SIGINT)
        yield "stdout", b"never"

    codes, client = leaving(monkeypatch), FakeClient(chunks=chunks)
    with pytest.raises(Left):
        remuda(monkeypatch, client, "--keep", "sleep", "9")
    assert (codes, client.cancelled.is_set()) == ([130], False)


def test_a_reader_that_leaves_cancels_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def chunks(client: FakeClient) -> Iterator[tuple[str, bytes]]:
        yield "stdout", b"y"
        if client.submitted:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    client = FakeClient(chunks=chunks)
    monkeypatch.setattr(run, "silence_stdout", lambda: None)
    result = remuda(monkeypatch, client, "yes")
    assert (result.exit_code, result.stderr) == (141, "")
    assert client.cancelled.is_set()


def test_nothing_is_lost_where_a_write_takes_only_a_part() -> None:
    class Sparing(io.RawIOBase):
        taken = b""

        def write(self, data: Any) -> int:
            self.taken += bytes(data[:7])
            return min(7, len(data))

    file = Sparing()
    write_whole(file, b"x" * 50)  # type: ignore[arg-type]
    assert file.taken == b"x" * 50


def test_without_a_usable_folder_it_says_so_and_exits_with_125(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("REMUDA_", "XDG_"))}
    env |= {"REMUDA_DATA_DIR": str(tmp_path / "file"), "REMUDA_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, "-m", "remuda", "run", "--", "true"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("remuda: error: ")
    assert "Traceback" not in done.stderr
