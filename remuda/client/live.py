"""What can be asked of a job, and done to it, while it runs: the part of `Job` that needs its VM."""

from __future__ import annotations

import signal
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from remuda.checks import seconds, shown, text_of, whole
from remuda.client import peeking
from remuda.client.calls import Line
from remuda.client.peeking import SandboxFile
from remuda.errors import BadInput, OutputNotAvailable, Refused, RemudaError, UnknownJob
from remuda.models import calls, outputs
from remuda.models.watches import vm_for_channel

if TYPE_CHECKING:
    from remuda.client.context import Context

_MAX_OFFSET = 2**53
_MAX_WALLTIME_S = 315_360_000
_ENDED = ("TERMINATING", "TERMINATED")

Toggle = Callable[["Context", Iterable[int]], dict[int, RemudaError | None]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job's last attempt is, or was; `address` is how workers reach the VM."""

    attempt_id: int
    vm: str
    backend: str
    address: Mapping[str, Any]


class LiveJob:
    """The methods of `Job` for a running job; each is answered by the job's VM, within a second.

    They raise UnknownJob, and VmUnreachable when the VM, or a worker to ask it, is away.
    """

    __slots__ = ()
    id: int
    _context: Context

    def peek(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Return a piece of "stdout", "stderr" or any file of its sandbox, as it is now.

        A negative offset counts from the end; `size` None: up to the end. "./stdout" is the file
        of that name. After its end the streams and the declared outputs are there. Raises
        OutputNotAvailable when it has not started, or there is no such file (any more).
        """
        text_of("a file's name", name, least=1, most=4000)
        whole("offset", offset, least=-_MAX_OFFSET, most=_MAX_OFFSET)
        if size is not None and whole("size", size, least=0, most=_MAX_OFFSET) == 0:
            return b""
        return peeking.peek(self._context, self.id, name, offset=offset, size=size)

    def files(self) -> list[SandboxFile]:
        """Return the files of its sandbox, at most 10,000; after its end those that were kept.

        Raises OutputNotAvailable when it has not started.
        """
        return peeking.files(self._context, self.id)

    def follow_file(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """Yield a file of its sandbox as it grows, until the job has ended.

        Begins at `offset`; waits for the job to start and for the file to be there. The last bytes
        of a file that is no declared output may be missed. Raises OutputNotAvailable when it never
        was seen.
        """
        text_of("a file's name", name, least=1, most=4000)
        whole("offset", offset, least=-_MAX_OFFSET, most=_MAX_OFFSET)
        return peeking.follow_file(self._context, self.id, name, offset=offset)

    def fresh_stdout(self) -> bytes:
        """Return what it wrote to stdout since this was last asked, by anybody: each byte once.

        A further attempt's output follows the earlier one's. Empty before it has started.
        """
        return peeking.fresh(self._context, self.id, "stdout")

    def fresh_stderr(self) -> bytes:
        """Return what it wrote to stderr since this was last asked; see `fresh_stdout`."""
        return peeking.fresh(self._context, self.id, "stderr")

    def attempt_output(self, number: int, stream: str = "stdout") -> Iterator[bytes]:
        """Yield what the job's `number`-th try (1-based) wrote to a stream, in pieces.

        Raises OutputNotAvailable when there was no such try, or it has not started.
        """
        if stream not in ("stdout", "stderr"):
            raise BadInput(f"there is no stream {shown(stream)}", hint="stdout or stderr")
        whole("an attempt's number", number, least=1, most=2**31)
        with peeking.Glass(self._context, self.id) as glass:
            attempts = [each for each in glass.attempts() if each["id"] is not None]
            found = [each for each in attempts if each["epoch"] == number]
            if not found:
                tries = f"it had {len(attempts)}" if attempts else "it has not been tried yet"
                raise OutputNotAvailable(f"job {self.id} has no attempt {number}", hint=tries)
            at = 0
            while (piece := glass.piece(found[0], stream, at, peeking.PIECE)).data:
                yield piece.data
                at = piece.end

    def send_signal(self, number: int | str) -> None:
        """Send a signal (10, "USR1" or "SIGUSR1") to the processes of its command, at most once.

        Raises Refused unless it runs; BadInput for an unknown signal. After VmUnreachable it is
        unknown whether the signal came.
        """
        wanted = signal_number(number)
        with Line(self._context) as line:
            line.ask("signal", self.id, signal=wanted)

    def suspend(self) -> None:
        """Stop its processes where they are: STOPPED. It keeps its slots; its walltime stands still.

        One that has not started is held back until `resume`. Harmless when repeated. Raises Refused
        when its command has ended.
        """
        self._toggled(suspend)

    def resume(self) -> None:
        """Let it go on after `suspend`; harmless when it runs. Raises Refused when it has ended."""
        self._toggled(resume)

    def extend_walltime(self, walltime_s: float) -> None:
        """Give it a longer walltime: `walltime_s` in all, from its start, suspension not counted.

        Raises Refused when its command has ended, when it has no limit, or a longer one.
        """
        wall = seconds("walltime_s", walltime_s, most=_MAX_WALLTIME_S)

        def put(connection: Connection) -> bool:
            found = calls.standing(connection, [self.id])
            if not found:
                raise UnknownJob(f"there is no job {self.id}")
            row = found[0]
            if row["state"] in _ENDED:
                raise Refused(f"job {self.id} is {row['state']}: its command has ended")
            if row["walltime_s"] is None:
                raise Refused(f"job {self.id} has no limit of walltime: there is none to extend")
            if wall < row["walltime_s"]:
                raise Refused(
                    f"job {self.id} may run {row['walltime_s']:g} s, more than {wall:g} s",
                    hint="a limit can be extended only; `cancel` ends a job",
                )
            return calls.set_walltime(connection, self.id, wall)

        if not self._context.commit(put):
            with Line(self._context) as line:
                line.ask("extend", self.id, walltime_s=wall)

    def place(self) -> Place:
        """Return where its last attempt is, or was; for tools that go there themselves.

        Raises Refused when it is on no VM, or that is gone.
        """
        with peeking.Glass(self._context, self.id) as glass:
            attempt = glass.last()
        if attempt["state"] in (None, "PLACED"):
            raise Refused(f"job {self.id} is {attempt['job_state']}: it has not started")
        row = self._context.read(lambda c: outputs.vm_of(c, attempt["id"]))
        vm = self._context.read(lambda c: vm_for_channel(c, row))
        if vm is None:
            raise Refused(f"the VM of job {self.id} is gone, and its sandbox with it")
        return Place(attempt["id"], vm["name"], vm["backend"], dict(vm["address"]))

    @abstractmethod
    def forget(self) -> None:
        """Have its row read anew when it is next asked for."""

    def _toggled(self, change: Toggle) -> None:
        error = change(self._context, [self.id])[self.id]
        self.forget()
        if error is not None:
            raise error


def signal_number(given: int | str) -> int:
    """Return the number of a signal, by number or by name; raises BadInput."""
    if isinstance(given, str):
        name = given.upper().removeprefix("SIG")
        if name.isascii() and name.isdigit():
            return signal_number(int(name))
        found = getattr(signal.Signals, f"SIG{name}", None)
        if not isinstance(found, signal.Signals):
            raise BadInput(f"there is no signal {shown(given)}", hint="such as TERM, USR1, or 10")
        return int(found)
    return whole("a signal", given, least=1, most=signal.SIGRTMAX)


def suspend(context: Context, job_ids: Iterable[int]) -> dict[int, RemudaError | None]:
    """Suspend jobs, hold back those that wait; return for each None, or why it was not."""
    return _toggle(context, list(dict.fromkeys(job_ids)), "suspend")


def resume(context: Context, job_ids: Iterable[int]) -> dict[int, RemudaError | None]:
    """Let suspended and held jobs go on; return for each None, or why it does not."""
    return _toggle(context, list(dict.fromkeys(job_ids)), "resume")


def _toggle(context: Context, ids: list[int], verb: str) -> dict[int, RemudaError | None]:
    change = calls.hold if verb == "suspend" else calls.let_go
    with Line(context) as line:
        waiting = context.commit(lambda c: change(c, ids))
        rest = [job_id for job_id in ids if job_id not in waiting]
        outcomes = line.ask_all(verb, rest) if rest else {}
        # What came back from a VM since the first look is waiting now.
        back = [job_id for job_id, out in outcomes.items() if isinstance(out, Refused)]
        waiting |= context.commit(lambda c: change(c, back)) if back else set()
    return {
        job_id: out
        if job_id not in waiting and isinstance(out := outcomes.get(job_id), RemudaError)
        else None
        for job_id in ids
    }
