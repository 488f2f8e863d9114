"""`remuda run`: one command, as if it ran here: its output, its exit code, Ctrl-C ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import connect
from remuda.cli.base import BROKEN_PIPE, Command, silence_stdout
from remuda.cli.job_options import job_options, take
from remuda.cli.output import note, printable, write_whole
from remuda.cli.run_wait import Waiting
from remuda.errors import NoResources, RemudaError

if TYPE_CHECKING:
    from remuda.client import Client, Job

OWN_FAILURE = 125  # as of timeout(1), env(1), docker run: never the command's own code
WALLTIME_OVER = 124

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RunCommand(Command):
    """Failures of Remuda itself, wrong usage included, have an exit code of their own."""

    failure_code = OWN_FAILURE


@click.command(
    "run",
    cls=RunCommand,
    context_settings={"allow_interspersed_args": False},
    short_help="Run one command and wait for it.",
)
@job_options
@click.option(
    "--keep", is_flag=True, help="Ctrl-C leaves the job running instead of cancelling it."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, command: tuple[str, ...], keep: bool, **options: Any) -> None:
    """Run COMMAND as a job and pass on its stdout, stderr and exit code as they come.

    \b
        remuda run -- echo hello
        remuda run --memory 2G --input fit.py --output fit.json -- python3 fit.py

    Outputs land in the current folder unless --output-dir says otherwise. stdin is empty.

    Exit code: the command's own; 128 + N when signal N ended it; 124 when its walltime did; 125
    when Remuda itself failed. Ctrl-C cancels the job, a second one leaves at once.
    """
    shared = take(options)
    if (shared.output or shared.optional_output) and shared.output_dir is None:
        options["output_dir"] = os.getcwd()
        shared = take(options)
    spec = shared.spec(command, follow=True)
    notice = _start_notice()
    with connect.open_client() as client:
        if notice:
            note(notice)
        with _Interrupts(client, keep=keep) as interrupts:
            try:
                job = client.submit(spec, pool=shared.pools)
            except NoResources as error:
                error.hint = "`job submit --allow-pending` submits what may fit a VM some day"
                raise
            interrupts.job_is(job)
            try:
                with Waiting(client, job):
                    pass_on(client, job)
            except BrokenPipeError:
                silence_stdout()
                client.cancel([job])
                ctx.exit(BROKEN_PIPE)
            job.wait()
            if shared.output_dir is not None:
                job.results(Path(shared.output_dir), overwrite=not shared.no_overwrite)
    ctx.exit(exit_code(job, interrupted_by=interrupts.number))


def pass_on(client: Client, job: Job) -> None:
    """Write the job's output as it comes to our own stdout and stderr, byte for byte."""
    outlets = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    for stream, data in client.follow(job):
        write_whole(outlets[stream], data)


def exit_code(job: Job, *, interrupted_by: int | None = None) -> int:
    """Return what a shell would see of the command; say on stderr what it could not."""
    reason = str(job.reason)
    if reason == "CANCELLED" and interrupted_by is not None:
        return 128 + interrupted_by
    if reason == "OK":
        return 0
    if reason == "NONZERO" and job.exit_code:
        if job.exit_code in (126, 127) and job.message:
            note(f"remuda: {printable(job.message)}")
        return int(job.exit_code)
    if reason == "WALLTIME":
        note("remuda: the walltime is over, the command was ended")
        return WALLTIME_OVER
    if reason in ("SIGNALLED", "OUT_OF_MEMORY", "CANCELLED") and job.signal:
        if reason != "SIGNALLED":
            note(f"remuda: job {job.id} ended: {_ending(job)}")
        return 128 + int(job.signal)
    note(f"remuda: error: job {job.id} ended: {_ending(job)}")
    note(f"hint: `remuda job show {job.id}` tells more")
    return OWN_FAILURE


class _Interrupts:
    """While the job runs: the first signal cancels it (or lets it be), a second leaves at once."""

    def __init__(self, client: Client, *, keep: bool) -> None:
        self.number: int | None = None
        self._client = client
        self._keep = keep
        self._job: Job | None = None
        self._submitted = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._submitted.set()

    def job_is(self, job: Job) -> None:
        """Tell which job it is, as soon as there is one."""
        self._job = job
        self._submitted.set()
        if self._keep and self.number is not None:
            self._leave(self.number)

    def _on(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None:
            self._leave(number)
        self.number = number
        if not self._keep:
            # Not here: the handler may have interrupted the client anywhere, holding a lock.
            threading.Thread(target=self._cancel, name="remuda-cancel", daemon=True).start()
        elif self._submitted.is_set():
            self._leave(number)

    def _cancel(self) -> None:
        self._submitted.wait()
        if self._job is None:
            return
        try:
            self._client.cancel([self._job])
        except RemudaError as error:
            note(f"remuda: error: job {self._job.id} could not be cancelled: {error.message}")

    def _leave(self, number: int) -> None:
        if self._job is not None:
            job_id, going = self._job.id, "goes on" if self._keep else "may still run"
            line = f"remuda: job {job_id} {going}; `remuda job logs -f {job_id}` shows it\n"
            os.write(2, line.encode())
        os._exit(128 + number)


def _ending(job: Job) -> str:
    return printable(f"{job.reason}: {job.message}" if job.message else str(job.reason))


def _start_notice() -> str:
    """Return what to say when the system has to be started first and a person looks on."""
    if not sys.stderr.isatty():
        return ""
    from remuda.config import load_settings
    from remuda.embedded import server_status

    settings = load_settings()
    if not settings.embedded or server_status(settings).running:
        return ""
    return f"remuda: started the system in {settings.data_dir}; `remuda down` stops it"
