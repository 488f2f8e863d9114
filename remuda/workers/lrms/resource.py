"""A resource that runs jobs, as GC3Pie's LRMS is one: over one VM of any backend, without a database.

    spec = JobSpec(["python3", "sim.py"], inputs=["sim.py"], outputs=["out.csv"])
    app = Application(spec, stdout="log.txt")
    resource = Resource("lab", {"x86_64"}, max_cores=8, max_cores_per_job=4,
                        max_memory_per_core=2 << 30, max_walltime=3600, backend=backend, vm=vm)
    resource.submit_job(app)
    while not app.execution.over:
        resource.update_job_state(app)
    resource.get_results(app, "results")
    resource.free(app)

Every call is over in its `timeout_s`, and may be repeated. What it raises has changed no job.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar

from remuda.constraints import architecture_of
from remuda.errors import (
    AuthError,
    BackendError,
    Refused,
    ResourceNotReady,
    StaleHolder,
    VmUnreachable,
)
from remuda.models.states import JobState, Reason
from remuda.stores import validate_urls
from remuda.workers.backends.base import Backend, VmAddress
from remuda.workers.channel import Channel
from remuda.workers.lrms import admission, results
from remuda.workers.lrms.accounting import Accounts
from remuda.workers.lrms.application import Application
from remuda.workers.lrms.link import Deadline, RunnerLink

__all__ = ["Resource", "authenticated"]

P = ParamSpec("P")
R = TypeVar("R")
TIMEOUT_S = 30.0


def authenticated(
    method: Callable[Concatenate[Resource, P], R],
) -> Callable[Concatenate[Resource, P], R]:
    """Have credentials obtained before the call; without them, AuthError, and no call is made."""

    @functools.wraps(method)
    def wrapper(self: Resource, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.authenticate()
        return method(self, *args, **kwargs)

    return wrapper


class Resource:
    """One VM's slots, and the jobs that were given to it; may be used by many threads.

    What it is made with never changes: `name`, `architecture`, `max_cores`, `max_cores_per_job`,
    `max_memory_per_core` (bytes), `max_walltime` (seconds), `auth` (called for credentials before
    each call) and whatever else is given: `max_gpus`, and `hardware` (a `constraints.Hardware`) for
    jobs with constraints. What does: `free_slots`, `user_run`, `user_queued`,
    `queued`, and `updated`, which tells whether the last look at the VM succeeded.
    """

    def __init__(
        self,
        name: str,
        architecture: Iterable[str],
        *,
        max_cores: int,
        max_cores_per_job: int,
        max_memory_per_core: int,
        max_walltime: float,
        backend: Backend,
        vm: VmAddress,
        auth: Callable[[], Any] | None = None,
        **extra: Any,
    ) -> None:
        """Connect with the first call."""
        self._limits = admission.Limits(
            name=name,
            architecture=frozenset(map(architecture_of, architecture)),
            max_cores=max_cores,
            max_cores_per_job=max_cores_per_job,
            max_memory_per_core=max_memory_per_core,
            max_walltime=max_walltime,
            extra=MappingProxyType(dict(extra)),
        )
        self._auth = auth
        self._backend, self._vm = backend, vm
        self._link = RunnerLink(backend, vm)
        self._accounts = Accounts(name, max_cores)
        self._lock = threading.RLock()  # one call at a time decides about jobs
        self.updated = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        limits = self._limits
        if name in limits.extra:
            return limits.extra[name]
        if name in admission.NAMES:
            return getattr(limits, name)
        raise AttributeError(f"a Resource has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in admission.NAMES or name in self.__dict__.get("_limits", admission.NOTHING).extra:
            raise Refused(f"{name} of a Resource never changes", hint="make another Resource")
        super().__setattr__(name, value)

    @property
    def free_slots(self) -> int:
        """How many slots nobody has."""
        return self._accounts.free_slots

    @property
    def user_run(self) -> int:
        """How many of the jobs given to this Resource run."""
        return self._accounts.user_run

    @property
    def user_queued(self) -> int:
        """How many of them were accepted and do not run yet."""
        return self._accounts.user_queued

    @property
    def queued(self) -> int:
        """How many jobs wait on the VM, others' too."""
        return self._accounts.queued

    def authenticate(self) -> None:
        """Obtain credentials; raises AuthError."""
        if self._auth is None:
            return
        try:
            self._auth()
        except AuthError:
            raise
        except Exception as error:
            name = self._limits.name
            raise AuthError(f"no credentials for {name}: {type(error).__name__}") from error

    # ---- jobs

    @authenticated
    def submit_job(self, app: Application, *, timeout_s: float = TIMEOUT_S) -> None:
        """Have a NEW job accepted; its state stays NEW, for `update_job_state` to move on.

        Repeating it for the same application starts nothing twice: do so after VmUnreachable, when
        it is unknown whether the job was accepted. Raises MaximumCapacityReached or
        ResourceNotReady if it is to be tried later, NoResources if it can never run here,
        DataStagingError if an input cannot be had.
        """
        with self._lock:
            run = app.execution
            if run.over or run.resource not in ("", self._limits.name):
                where = f", given to {run.resource}" if run.resource else ""
                raise Refused(
                    f"{app} cannot be submitted to {self._limits.name}: it is {run.state}{where}",
                    hint="again() makes another attempt at the same job",
                )
            job = admission.admit(app, self._limits)
            new = self._accounts.take(run.attempt_id, app.spec.cores)
            deadline = self._deadline("submit_job", timeout_s)
            try:
                channel = self._link.channel(deadline)
            except VmUnreachable as error:
                if new:
                    self._accounts.give_back(run.attempt_id)
                raise ResourceNotReady(f"{self._limits.name}: {error}") from error
            try:
                states = self._backend.submit_jobs(
                    channel, self._vm, [job], floor=admission.floor(run.attempt_id)
                )
            except (BackendError, Refused):
                if new:
                    self._accounts.give_back(run.attempt_id)
                raise
            except VmUnreachable:
                run.resource = self._limits.name  # it may have it: only here it may be tried again
                raise
            self._accepted(app, states.get(run.attempt_id, "stale"))

    def _accepted(self, app: Application, state: str) -> None:
        run = app.execution
        if state == "stale":
            self._accounts.give_back(run.attempt_id)
            raise StaleHolder(
                f"{self._limits.name} refuses {app}: it was replaced, recalled or freed there",
                hint="again() makes another attempt at the same job",
            )
        run.resource, run.accepted = self._limits.name, True
        if state == "running":
            self._accounts.began(run.attempt_id)

    def update_job_state(self, app: Application, *, timeout_s: float = TIMEOUT_S) -> JobState:
        """Return the state of a job as the resource has it now; see `update_job_states`."""
        return self.update_job_states([app], timeout_s=timeout_s)[0]

    @authenticated
    def update_job_states(
        self, apps: Sequence[Application], *, timeout_s: float = TIMEOUT_S
    ) -> list[JobState]:
        """Ask once for all these jobs, record their states and return them in order.

        A job that has ended is TERMINATING until `get_results`. One the resource does not know is
        TERMINATED and LOST; unless it was never said to be accepted: then it is NEW, and was not.
        Raises VmUnreachable if the VM cannot be asked; then every state is left alone.
        """
        with self._lock:
            asked = [app for app in apps if self._is_here(app) and not app.execution.over]
            if asked:
                deadline = self._deadline("update_job_states", timeout_s)
                status = self._status(self._link.channel(deadline), asked)
                ours = {app.execution.attempt_id for app in asked}
                self._link.wait_exits(ours & set(status["exited"]), deadline)
                for app in asked:
                    self._update(app, status)
            return [app.execution.state for app in apps]

    def _update(self, app: Application, status: Mapping[str, Any]) -> None:
        run = app.execution
        a = run.attempt_id
        entry = self._link.exit_of(a)
        if entry is not None:
            run.accepted = True
            run.record(entry)
        elif a in status["running_ids"]:
            run.accepted = True
            run.advance(JobState.STOPPED if a in status["suspended"] else JobState.RUNNING)
            return
        elif a in status["queued"]:
            run.accepted = True
            run.advance(JobState.SUBMITTED)
            return
        elif run.accepted:
            run.end(Reason.LOST, f"{self._limits.name} does not know it any more")
        else:
            run.resource = ""
        self._accounts.give_back(a)

    @authenticated
    def get_results(
        self,
        app: Application,
        directory: str | Path,
        overwrite: bool = False,
        *,
        timeout_s: float = 3600.0,
    ) -> dict[str, Path | str]:
        """Save a job's outputs in an existing directory; return where each is, a path or URL.

        An ended job is TERMINATED then; of a running one, what is there is saved. What is missing of
        the declared outputs is recorded, and fails the job unless it was optional. Nothing is
        overwritten unless told so. Raises OutputNotAvailable for a job that has not begun, was lost
        or was freed; DataStagingError, before anything is copied, if a file is in the way.
        """
        with self._lock:
            deadline = self._deadline("get_results", timeout_s)
            results.check(app)
            channel = self._link.channel(deadline)
            copier = results.Copier(self._backend, self._vm, channel, deadline)
            return copier.get(app, Path(directory), overwrite=overwrite)

    @authenticated
    def cancel_job(
        self, app: Application, *, grace_s: float = 5.0, timeout_s: float = TIMEOUT_S
    ) -> None:
        """End a job, all it has started with it: TERMINATED, reason CANCELLED.

        One that has ended, even a moment ago, keeps its end. Raises VmUnreachable if that cannot be
        had in time; the job is then as it was.
        """
        with self._lock:
            run = app.execution
            if run.over:
                return
            if self._is_here(app):
                deadline = self._deadline("cancel_job", timeout_s)
                channel = self._link.channel(deadline)
                a, grace_s = run.attempt_id, min(grace_s, deadline.left_s() / 2)
                if not self._backend.cancel_jobs(channel, self._vm, [a], grace_s=grace_s):
                    self._link.wait_exits([a], deadline)
                else:  # unknown: it must not come to be known by a message still on its way
                    self._backend.free(channel, self._vm, [a])
                self._accounts.give_back(a)
            entry = self._link.exit_of(run.attempt_id)
            if entry is not None:
                run.record(entry)
            else:
                run.end(Reason.CANCELLED, "cancelled")

    @authenticated
    def free(self, app: Application, *, timeout_s: float = TIMEOUT_S) -> None:
        """Remove what an ended job left on the resource; harmless when repeated.

        Raises Refused for a job that has not ended.
        """
        with self._lock:
            run = app.execution
            if not run.over:
                raise Refused(f"{app} has not ended", hint="cancel_job() ends it")
            if self._is_here(app) and not run.freed:
                channel = self._link.channel(self._deadline("free", timeout_s))
                self._link.free(channel, run.attempt_id)
                self._accounts.give_back(run.attempt_id)
            run.freed = True

    @authenticated
    def peek(
        self,
        app: Application,
        remote: str,
        local: str | Path | BinaryIO,
        offset: int = 0,
        size: int | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> int:
        """Copy a piece of "stdout", "stderr" or a file of the job to a path or file object.

        A negative offset counts from the end; past the end there is nothing. Returns how many bytes
        were copied. Raises OutputNotAvailable.
        """
        results.check(app)
        deadline = self._deadline("peek", timeout_s)
        copier = results.Copier(self._backend, self._vm, self._link.channel(deadline), deadline)
        return copier.peek(app, remote, local, offset=offset, size=size)

    # ---- the resource

    @authenticated
    def get_resource_status(self, *, timeout_s: float = TIMEOUT_S) -> Resource:
        """Refresh what changes, and return self; raises VmUnreachable, `updated` then false."""
        self.updated = False
        with self._lock:
            self._status(self._link.channel(self._deadline("get_resource_status", timeout_s)))
        self.updated = True
        return self

    def _status(self, channel: Channel, ours: Iterable[Application] = ()) -> dict[str, Any]:
        status = channel.request("status")
        status.setdefault("suspended", [])
        # The news of an end may have overtaken the answer.
        ended = self._link.ended()
        status["running_ids"] = {a for a, _ in status["running"]} - ended
        for attempt_id in ended | set(status["exited"]):
            self._accounts.give_back(attempt_id)
        waiting = set(status["queued"]) - ended
        for app in ours:  # also those that another process had accepted
            if app.execution.attempt_id in status["running_ids"] | waiting:
                self._accounts.adopt(app.execution.attempt_id, app.spec.cores)
        self._accounts.observe(queued=waiting, running=status["running_ids"])
        return status

    def validate_data(self, urls: Iterable[str]) -> bool:
        """Tell whether every one of these URLs can be staged here, by its scheme."""
        return validate_urls(urls)

    def lose_jobs(self, apps: Iterable[Application], why: str = "its VM is gone") -> None:
        """Declare jobs LOST whose VM is known to be gone; only the provider can tell that."""
        with self._lock:
            for app in apps:
                if self._is_here(app) and not app.execution.over:
                    app.execution.end(Reason.LOST, why)
                    self._accounts.give_back(app.execution.attempt_id)

    def close(self) -> None:
        """Close the connection; jobs are left alone, and the next call connects again."""
        self._link.close()

    def _is_here(self, app: Application) -> bool:
        return app.execution.resource == self._limits.name

    def _deadline(self, what: str, timeout_s: float) -> Deadline:
        return Deadline(timeout_s, f"{self._limits.name}: {what}")
