"""Answer calls: ask the runner what a client wants to know of a running job, or wants done to it.

Everything here runs in threads of its own, so a VM that doesn't answer holds up nobody else; and
nothing holds a transaction while a VM is asked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Connection

from remuda.errors import RemudaError, VmUnreachable
from remuda.models import calls as models
from remuda.tasks import answering
from remuda.tasks.answering import Call, Work
from remuda.tasks.runtime import Runtime

log = logging.getLogger(__name__)

_THREADS = 8
_MOST, _GATHER_S = 32, 0.05  # answers written together, and for how long they are gathered


class Answerer:
    """Answers the calls a worker may answer; `wake` it when there may be some."""

    def __init__(self, runtime: Runtime) -> None:
        """Start no thread yet."""
        self._runtime = runtime
        self._claiming = ThreadPoolExecutor(1, thread_name_prefix="remuda-claim")
        self._asking = ThreadPoolExecutor(_THREADS, thread_name_prefix="remuda-call")
        self._lock = threading.Lock()
        self._due = False

    def wake(self) -> None:
        """Look for calls soon; quick, and harmless when there are none."""
        with self._lock:
            if self._due:
                return
            self._due = True
            try:
                self._claiming.submit(self._claim)
            except RuntimeError:  # closed
                return

    def close(self) -> None:
        """Take up no more; those claimed are answered, or another worker's after a while."""
        with self._lock:
            self._due = True
        self._claiming.shutdown(wait=False, cancel_futures=True)
        self._asking.shutdown(wait=False, cancel_futures=True)

    def _claim(self) -> None:
        with self._lock:
            self._due = False
        try:
            for vm_id, claimed in _claimed(self._runtime).items():
                self._asking.submit(_answered, self._runtime, vm_id, claimed)
        except RuntimeError:
            log.debug("closed with calls claimed")
        except RemudaError as error:
            log.warning("calls must wait: %s", error)
        except Exception:
            log.exception("calls could not be claimed")


def answer_all(runtime: Runtime) -> int:
    """Answer, here and now, the calls nobody has; return how many. For the sweep."""
    found = _claimed(runtime)
    for vm_id, claimed in found.items():
        _answered(runtime, vm_id, claimed)
    return sum(map(len, found.values()))


def record_states(runtime: Runtime, vm_id: int, suspended: Mapping[int, bool]) -> None:
    """Record what the VM's runner says of its attempts: which are suspended, which run."""
    if suspended:
        runtime.transact(lambda c: models.record_suspended(c, vm_id, suspended))


def _claimed(runtime: Runtime) -> dict[int | None, list[Call]]:
    by_vm: dict[int | None, list[Call]] = defaultdict(list)
    while True:
        found = runtime.transact(lambda c: models.claim(c, runtime.worker))
        for call in found:
            by_vm[call["vm_id"]].append(call)
        if not found:
            return by_vm


def _answered(runtime: Runtime, vm_id: int | None, claimed: Sequence[Call]) -> None:
    """Answer calls of one VM in turn; quick ones are written together."""
    written = _Written(runtime)
    deadline = time.monotonic() + models.STALE_S - answering.MOST_S
    unreachable: RemudaError | None = None
    for i, call in enumerate(claimed):
        if time.monotonic() > deadline:  # it must not be asked after another worker took it
            rest = [each["id"] for each in claimed[i:]]
            runtime.transact(lambda c: models.release(c, rest))  # noqa: B023
            break
        works: list[Work] = []
        try:
            if unreachable is not None:
                raise unreachable
            answer = models.Answer(call["id"], answering.ask(runtime, vm_id, call, works))
        except VmUnreachable as error:
            unreachable = error
            answer = models.Answer(call["id"], error=error)
        except RemudaError as error:
            answer = models.Answer(call["id"], error=error)
        except Exception as error:
            log.exception("a call failed", extra={"job_id": call["job_id"]})
            answer = models.Answer(call["id"], error=RemudaError(f"the worker failed: {error}"))
        written.add(works, answer, hurry=call["verb"] in ("peek", "files"))
    written.flush()


class _Written:
    """Answers with what is to be recorded with them, gathered for a moment."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._works: list[Work] = []
        self._answers: list[models.Answer] = []
        self._since = 0.0

    def add(self, works: Sequence[Work], answer: models.Answer, *, hurry: bool) -> None:
        self._since = self._since if self._answers else time.monotonic()
        self._works += works
        self._answers.append(answer)
        if hurry or len(self._answers) >= _MOST or time.monotonic() - self._since > _GATHER_S:
            self.flush()

    def flush(self) -> None:
        works, answers, self._works, self._answers = self._works, self._answers, [], []

        def write(connection: Connection) -> None:
            for work in works:
                work(connection)
            models.answer(connection, answers)

        try:
            if answers:
                self._runtime.transact(write)
        except RemudaError as error:
            log.warning("answers could not be written: %s", error)
