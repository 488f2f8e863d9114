"""Take up VMs: claim the watch, connect, agree with the runner on what is live; recover lost ones."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection

from remuda.errors import (
    BadInput,
    IllegalTransition,
    InstanceNotFound,
    ProviderError,
    RemudaError,
    VmUnreachable,
)
from remuda.models import calls, collect, starting, watches
from remuda.models.exits import lock_journal
from remuda.models.machines import provider_ids_of, vm_with_pool
from remuda.models.states import VmState
from remuda.models.vm_life import lock_vms, move_vm
from remuda.tasks import logs, messages, recording
from remuda.tasks.contextualizing import configure
from remuda.tasks.links import vm_address
from remuda.tasks.providing import vm_pool
from remuda.tasks.runtime import Runtime
from remuda.workers.channel import Channel
from remuda.workers.vmpool import VMPool

log = logging.getLogger(__name__)
_VIEW_S = 0.5  # how long a provider's answer about a pool is good for the next of its VMs
_Key = tuple[int, str]  # a pool's id, an offer's name
_CLAIM_S = 2.0  # how long a claim under way is waited for at the end
_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0)


class Attacher:
    """Attaches this worker to VMs in a few threads of its own, so that nothing waits for it."""

    def __init__(
        self,
        runtime: Runtime,
        heard: Callable[[int, Channel, dict[str, Any] | None], None],
        wake: Callable[[str], None],
    ) -> None:
        """`heard` gets what runners push and, with None, that a channel closed."""
        self._runtime = runtime
        self._heard = heard
        self._wake = wake
        self._stop = threading.Event()
        self._views = Views(runtime)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="remuda-attach")
        self._busy: set[int] = set()
        self._lock = threading.Lock()
        self._claiming = threading.Lock()

    def close(self) -> None:
        """Stop attaching: when this returns no watch is claimed any more."""
        self._stop.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._claiming.acquire(timeout=_CLAIM_S):  # one may be under way
            self._claiming.release()

    def claim(self, vm_ids: Sequence[int] | None = None) -> int:
        """Claim VMs nobody watches (of `vm_ids`, if given) and attach to them; return how many."""
        rows = self._claimed(vm_ids)
        watched = self._runtime.links.watched()
        rows = [row for row in rows if row["id"] not in watched]
        for row in rows:
            self._begin(row["id"])
        return len(rows)

    def _claimed(self, vm_ids: Sequence[int] | None) -> list[dict[str, Any]]:
        """Claim, unless it is over: what would be claimed then, nobody would give back."""
        runtime = self._runtime
        with self._claiming:
            if self._stop.is_set():
                return []
            return runtime.transact(
                lambda c: watches.claim_watches(
                    c, runtime.worker, ttl_s=runtime.settings.watch_ttl_s, vm_ids=vm_ids
                )
            )

    def lost_channel(self, vm_id: int, channel: Channel) -> None:
        """The channel closed by itself: if it was the watch, try to get the VM back."""
        if self._runtime.links.drop(vm_id, channel):
            log.warning("lost the channel to VM %d", vm_id, extra={"vm_id": vm_id})
            self._begin(vm_id)

    def _begin(self, vm_id: int) -> None:
        with self._lock:
            if vm_id in self._busy or self._stop.is_set():
                return
            self._busy.add(vm_id)
        self._threads.submit(self._take_up, vm_id)

    def _take_up(self, vm_id: int) -> None:
        try:
            for pause in _PAUSES_S:
                if self._stop.wait(pause) or self._tried(vm_id):
                    return
            log.warning(
                "cannot reach VM %d; its heartbeats will tell", vm_id, extra={"vm_id": vm_id}
            )
        except Exception:
            log.exception("could not take up VM %d", vm_id, extra={"vm_id": vm_id})
        finally:
            with self._lock:
                self._busy.discard(vm_id)

    def _tried(self, vm_id: int) -> bool:
        """Try once; True when there is nothing left to try."""
        runtime = self._runtime
        rows = self._claimed([vm_id])
        if not rows:
            return True  # ended, or another worker's by now
        try:
            self.attach(rows[0])
            return True
        except VmUnreachable as error:
            log.info("VM %d does not answer: %s", vm_id, error, extra={"vm_id": vm_id})
        with self._lock:
            lost = set(self._busy)
        if self._views.is_gone(vm_id, lost):
            vanish(runtime, vm_id, "the VM is gone, or stopped, at the provider")
            self._wake("vm")
            return True
        try:
            runtime.links.backend(rows[0]["backend"]).revive(vm_address(rows[0]))
            log.warning("restarted the runner of VM %d", vm_id, extra={"vm_id": vm_id})
        except RemudaError as error:
            log.info("cannot restart the runner of VM %d: %s", vm_id, error)
        return False

    def attach(self, row: Mapping[str, Any]) -> Channel:
        """Open the watch on the VM of `row` and agree with its runner; raises VmUnreachable."""
        vm_id = row["id"]
        channel = self._runtime.links.watch(
            row,
            on_push=lambda channel, message: self._heard(vm_id, channel, message),
            on_close=lambda channel: self._heard(vm_id, channel, None),
        )
        agree(self._runtime, row, channel)
        self._runtime.transact(lambda c: watches.note_contact(c, vm_id))
        if row["state"] == VmState.STALLED:
            self._revive(vm_id)
        self._wake("dispatch")
        return channel

    def _revive(self, vm_id: int) -> None:
        def work(connection: Connection) -> None:
            move_vm(connection, vm_id, VmState.RUNNING, allowed=[VmState.STALLED])

        try:
            self._runtime.transact(work)
            logs.transition("vm", vm_id, "RUNNING", after="STALLED")
        except IllegalTransition as error:
            log.info("VM %d is not revived: %s", vm_id, error)


def agree(runtime: Runtime, row: Mapping[str, Any], channel: Channel) -> None:
    """Compare what the runner has with what is live in the database; the database wins.

    What the runner has and the database gave up is killed there; what the runner was never told
    is sent again; a journal older than what was recorded means that the machine was replaced.
    """
    vm_id = row["id"]
    stopped = runtime.transact(lambda c: calls.stopped_on(c, vm_id))  # before the runner is asked
    hello = channel.request("hello", watch=False, since=0)
    newest = hello["journal"]
    configure(channel, hello, row)
    status = channel.request("status")
    if newest < row["journal_n"]:
        vanish(runtime, vm_id, "the runner's journal is not the one this VM had")
        return
    live = runtime.transact(lambda c: collect.live_attempts(c, [vm_id]))
    wanted = {attempt["attempt_id"]: attempt["state"] for attempt in live}
    queued = set(status["queued"])
    running = {pair[0] for pair in status["running"]}
    exited = set(status["exited"])
    astray = sorted((queued | running) - set(wanted))
    if astray:
        log.warning(
            "VM %d runs attempts that were given up; they are killed",
            vm_id,
            extra={"vm_id": vm_id, "attempt_ids": astray},
        )
        channel.send("cancel", a=astray, grace=0)
    leftover = sorted(exited - set(wanted))
    if leftover:
        channel.send("free", a=leftover)
    suspended = set(status.get("suspended", ()))
    moved = {
        a: a in suspended for a, was in stopped.items() if a in running and was != (a in suspended)
    }
    if moved:
        runtime.transact(lambda c: calls.record_suspended(c, vm_id, moved))
    relieve(runtime, row, channel)
    untold = [a for a, s in wanted.items() if s == "PLACED" and a not in queued | running | exited]
    if untold:
        messages.submit_job(vm_id, untold)


def relieve(runtime: Runtime, row: Mapping[str, Any], channel: Channel) -> None:
    """Take back what waits on the VM behind jobs that take long, so that it is placed elsewhere."""
    vm_id = row["id"]
    horizon_s = runtime.settings.placement_horizon_s
    waiting = runtime.transact(lambda c: starting.stuck(c, vm_id, horizon_s=horizon_s))
    if not waiting:
        return
    backend = runtime.links.backend(row["backend"])
    recalled = backend.recall_jobs(channel, vm_address(row), waiting)

    def work(connection: Connection) -> None:
        if lock_journal(connection, vm_id) is not None:
            starting.take_back(connection, vm_id, recalled)

    if recalled:
        runtime.transact(work)
        log.info(
            "VM %d: %d jobs no longer wait behind others",
            vm_id,
            len(recalled),
            extra={"vm_id": vm_id, "attempt_ids": recalled},
        )


class Views:
    """What providers say of VMs whose channels broke, asked for in one call a pool.

    When a network breaks, hundreds of channels do: they are one question a pool, not one a VM.
    """

    def __init__(self, runtime: Runtime) -> None:
        """Know nothing yet."""
        self._runtime = runtime
        self._lock = threading.Lock()
        self._locks: dict[_Key, threading.Lock] = defaultdict(threading.Lock)
        self._views: dict[_Key, tuple[float, VMPool]] = {}

    def is_gone(self, vm_id: int, lost: Iterable[int] = ()) -> bool:
        """Return whether the provider says that the VM no longer runs; not knowing is False.

        `lost`: VMs that are asked about next, if they are of its pool.
        """
        row = self._runtime.transact(lambda c: vm_with_pool(c, vm_id))
        if row is None or row["provider_id"] is None:
            return row is None
        key = (row["pool_id"], row["offer"])
        with self._lock:
            lock = self._locks[key]  # of its own, so that a slow provider holds up no other
        with lock:
            try:
                view = self._view(key, row, {vm_id, *lost})
                if row["provider_id"] not in view:
                    return False  # it is being ended already
                return view.get_vm(row["provider_id"]).state == "stopped"
            except InstanceNotFound:
                return True
            except (ProviderError, BadInput) as error:
                log.warning("the provider %s does not answer: %s", row["provider"], error)
                return False

    def _view(self, key: _Key, row: Mapping[str, Any], lost: set[int]) -> VMPool:
        asked_at, view = self._views.get(key, (0.0, None))
        if view is None or time.monotonic() - asked_at > _VIEW_S:
            view = vm_pool(self._runtime, row)
            view.describe(self._runtime.transact(lambda c: provider_ids_of(c, sorted(lost), *key)))
            self._views[key] = time.monotonic(), view
        return view


def vanish(runtime: Runtime, vm_id: int, why: str) -> None:
    """Give the VM up in one transaction: ERROR, its attempts LOST, their jobs placed anew."""

    def work(connection: Connection) -> int:
        state = lock_vms(connection, [vm_id]).get(vm_id)
        if state in (None, VmState.HALTED, VmState.STOPPING, VmState.ERROR):
            return 0
        move_vm(connection, vm_id, VmState.ERROR, fields={"error": why})
        lost = recording.lose_attempts(connection, vm_id, why)
        move_vm(connection, vm_id, VmState.STOPPING)
        return lost

    lost = runtime.transact(work)
    logs.transition("vm", vm_id, "ERROR", error=why, attempts_lost=lost)
    runtime.links.drop(vm_id)
    messages.terminate_vm([vm_id])
