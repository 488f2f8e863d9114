"""Remote control from Celery's side: who listens to events, and jobs to cancel.

These take the place of Celery's commands of the same names, do what those do, and more. Every
worker gets them; what they change, they change once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import Any

from celery.worker import control
from celery.worker.control import control_command

from remuda.errors import RemudaError
from remuda.models.observing import cancel_shown
from remuda.tasks.flower import ids
from remuda.tasks.runtime import get_runtime
from remuda.tasks.watching import this_watcher

log = logging.getLogger(__name__)

_ANSWER_S = 0.7  # celery control waits 1 s for answers
_canceller = ThreadPoolExecutor(1, thread_name_prefix="remuda-revoke")


@control_command()  # type: ignore[untyped-decorator]
def enable_events(state: Any) -> Any:
    """Tell worker(s) to send task-related events."""
    _listens()
    return control.enable_events(state)


@control_command()  # type: ignore[untyped-decorator]
def heartbeat(state: Any) -> Any:
    """Tell worker(s) to send event heartbeat immediately."""
    _listens(anew=True)  # sent by each monitor that starts to listen
    return control.heartbeat(state)


@control_command()  # type: ignore[untyped-decorator]
def disable_events(state: Any) -> Any:
    """Tell worker(s) to stop sending task-related events."""
    watcher = this_watcher()
    if watcher is not None:
        watcher.teller.unwanted()
    return control.disable_events(state)


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(
    state: Any, task_id: Any, terminate: bool = False, signal: str | None = None, **kwargs: Any
) -> Any:
    """Revoke task by task id (or list of ids): cancel the job of an attempt, or a job by its number."""
    given = [str(one) for one in task_id] if isinstance(task_id, (list, tuple, set)) else [task_id]
    attempts = {a for one in given if (a := ids.attempt_id(str(one))) is not None}
    jobs = {int(one) for one in given if _is_job(str(one))}
    others = [one for one in given if ids.attempt_id(str(one)) is None and not _is_job(str(one))]
    answers = [_cancel(sorted(attempts), sorted(jobs))] if attempts or jobs else []
    if others or not given:
        told = control.revoke(state, others, terminate=terminate, signal=signal, **kwargs)
        if not answers:
            return told
        answers.append(str(told.get("ok", told)))
    return {"ok": "; ".join(answers)}


@control_command(  # type: ignore[untyped-decorator]
    variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]"
)
def terminate(state: Any, signal: str, task_id: Any, **kwargs: Any) -> Any:
    """Terminate task by task id (or list of ids); a job is cancelled, whatever the signal."""
    return revoke(state, task_id, terminate=True, signal=signal)


def _listens(*, anew: bool = False) -> None:
    watcher = this_watcher()
    if watcher is not None:
        watcher.teller.wanted(anew=anew)


def _is_job(given: str) -> bool:
    return given.isascii() and given.isdigit() and len(given) <= 18


def _cancel(attempts: Sequence[int], jobs: Sequence[int]) -> str:
    """Cancel in a thread, so that a slow database does not hold up the worker; return what came of it."""
    asked = _canceller.submit(_cancel_now, attempts, jobs)
    try:
        return asked.result(timeout=_ANSWER_S)
    except NotYet:
        return "the jobs are being cancelled"


def _cancel_now(attempts: Sequence[int], jobs: Sequence[int]) -> str:
    try:
        found, touched = get_runtime().transact(
            lambda c: cancel_shown(c, attempt_ids=attempts, job_ids=jobs)
        )
    except RemudaError as error:
        log.warning("jobs were not cancelled: %s", error)
        return f"not cancelled: {error}"
    over = sorted(set(found) - set(touched))
    parts = [
        f"cancelling {_jobs(touched)}" if touched else "",
        f"{_jobs(over)} had ended" if over else "",
        "" if found else "no such job",
    ]
    return ", ".join(filter(None, parts))


def _jobs(job_ids: Sequence[int]) -> str:
    few = ", ".join(map(str, job_ids[:10])) + (", …" if len(job_ids) > 10 else "")
    return f"job {few}" if len(job_ids) == 1 else f"{len(job_ids)} jobs ({few})"
