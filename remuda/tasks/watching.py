"""The watcher: what a worker does besides its tasks. It hears the database and the VMs it watches.

One thread does everything in turn (record what runners pushed, dispatch, cancel, renew the
watches), so batches grow by themselves under load. Whatever may take long (connecting to a VM,
removing one) is done by a few helper threads or sent as a task. All of it is a shortcut: with the
watcher dead, the sweeps still bring every job to its end.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import defaultdict
from typing import Any

from celery import bootsteps

from remuda.errors import RemudaError, Unreachable
from remuda.models.database import WAKE_CHANNEL, Listener
from remuda.models.starting import next_retry_s
from remuda.models.watches import release_watches, renew_watches
from remuda.tasks import (
    attaching,
    calling,
    cancelling,
    figures,
    leasing,
    messages,
    placing,
    recording,
    sizing,
)
from remuda.tasks.flower.teller import Teller
from remuda.tasks.runtime import Runtime, drop_runtime, get_runtime
from remuda.workers.channel import Channel

log = logging.getLogger(__name__)

_GATHER_S = 0.03  # how long pushes are gathered while the runner has plenty to do
_STEP_S = 0.1  # between two looks for jobs to try again, however many failed together


class Watcher:
    """The loop and its listener; `start` and `stop` it once."""

    def __init__(self, runtime: Runtime, teller: Teller) -> None:
        """Start nothing yet. `teller`: gets what is recorded."""
        self._runtime = runtime
        self._teller = teller
        self._inbox: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._batches: dict[int, recording.Batch] = defaultdict(recording.Batch)
        self._clocks: dict[int, recording.Clock] = defaultdict(recording.Clock)
        self._beats: dict[int, dict[str, Any]] = {}
        self._output: list[dict[str, Any]] = []
        self._said: list[tuple[int, dict[str, Any]]] = []
        self._suspended: dict[int, dict[int, bool]] = defaultdict(dict)
        self._wakes: set[str] = {"dispatch"}
        self._leases_wanted = False  # somebody waits for a lease, as far as is known here
        self._in_flight: dict[int, int] = defaultdict(int)
        self._refill_at: dict[int, int] = {}
        self._renew_at = 0.0
        self._resize_at = float("inf")
        self._retry_at = float("inf")
        self._attacher = attaching.Attacher(runtime, self.heard, self.wake)
        self._answerer = calling.Answerer(runtime)
        self._threads = [
            threading.Thread(target=self._listen, name="remuda-listener", daemon=True),
            threading.Thread(target=self._loop, name="remuda-watcher", daemon=True),
        ]

    def start(self) -> None:
        """Start listening and looping."""
        for thread in self._threads:
            thread.start()
        self._teller.start()

    def stop(self) -> None:
        """Stop, leaving running jobs alone; the watches are free for others at once."""
        self._stop.set()
        self._inbox.put(("stop", None, None))
        self._threads[1].join(timeout=10)
        self._teller.stop()
        self._attacher.close()
        self._answerer.close()
        try:
            self._runtime.transact(lambda c: release_watches(c, self._runtime.worker))
        except RemudaError as error:
            log.warning("the watches stay until they expire: %s", error)

    @property
    def attacher(self) -> attaching.Attacher:
        """What takes up VMs for this worker."""
        return self._attacher

    @property
    def teller(self) -> Teller:
        """What shows this worker's VMs to monitors."""
        return self._teller

    def wake(self, kind: str) -> None:
        """Have done what `kind` asks for: call, dispatch, cancel, follow, lease, release, stop, ..."""
        if kind == "call":
            self._answerer.wake()  # somebody waits for it: not in the loop's turn
        else:
            self._inbox.put(("wake", kind, None))

    def heard(self, vm_id: int, channel: Channel, message: dict[str, Any] | None) -> None:
        """Take a push of a VM's runner (None: its channel closed); called by the channel's thread."""
        if message is not None and message.get("push") == "beat" and "dead_man" in message:
            self._tell_alive(channel)  # here: it must not wait for the database
        kind = "push" if message is not None else "closed"
        self._inbox.put((kind, vm_id, (channel, message, time.monotonic())))

    @staticmethod
    def _tell_alive(channel: Channel) -> None:
        with contextlib.suppress(Unreachable):
            channel.send("heard")

    def _listen(self) -> None:
        pause = 0.1
        while not self._stop.is_set():
            try:
                listener = Listener(self._runtime.url, [WAKE_CHANNEL])
            except RemudaError as error:
                log.warning("not listening: %s", error)
                self._stop.wait(pause)
                pause = min(5.0, pause * 2)
                continue
            pause = 0.1
            try:
                self.wake("dispatch")  # what came while nobody listened
                self.wake("cancel")
                self.wake("call")
                while not self._stop.is_set():
                    for _, kind in listener.wait(1.0):
                        self.wake(kind)
            except Unreachable as error:
                if not self._stop.is_set():
                    log.warning("lost the listening connection: %s", error)
            finally:
                listener.close()

    def _loop(self) -> None:
        pause, failed_s = 0.0, 0.25
        while not self._stop.is_set():
            self._gather(pause)
            if self._stop.is_set():
                break
            try:
                pause = self._turn()
                failed_s = 0.25
                continue
            except Unreachable as error:
                log.warning("the watcher waits: %s", error)
                failed_s = 0.5
            except Exception:
                failed_s = min(30.0, failed_s * 2)
                log.exception("the watcher failed in a turn; it goes on in %.1f s", failed_s)
            self._stop.wait(failed_s)

    def _gather(self, pause: float) -> None:
        """Wait for something to do; then take all there is, `pause` seconds long if nothing hurries."""
        deadline = time.monotonic() + pause
        if not (self._wakes or self._batches or self._output or self._said or self._suspended):
            next_at = min(self._renew_at, self._resize_at, self._retry_at)
            self._take(timeout_s=max(0.01, next_at - time.monotonic()))
        while True:
            left = deadline - time.monotonic()
            if not self._take(timeout_s=left if left > 0 else 0) and left <= 0:
                return

    def _take(self, *, timeout_s: float) -> bool:
        try:
            kind, key, value = self._inbox.get(block=timeout_s > 0, timeout=max(timeout_s, 0.001))
        except queue.Empty:
            return False
        if kind == "wake":
            self._wakes.add(key)
        elif kind == "closed":
            self._in_flight.pop(key, None)  # unknown from here on: each end looks for more work
            self._refill_at.pop(key, None)
            self._attacher.lost_channel(key, value[0])
        elif kind == "push":
            self._sort(key, value[1], came_at=value[2])
        return True

    def _sort(self, vm_id: int, message: dict[str, Any], *, came_at: float) -> None:
        push = message.get("push")
        if push == "entries":
            self._batches[vm_id].add(message, came_at=came_at, clock=self._clocks[vm_id])
        elif push == "beat":
            self._beats[vm_id] = message
        elif push == "output":
            self._output.append(message)
        elif push == "said":
            self._said.append((vm_id, message))
        elif push == "state":
            self._suspended[vm_id][message["a"]] = bool(message["suspended"])
        elif push == "prepared":
            messages.spawn_vm([vm_id])  # takes the VM on from where it is
        elif push == "unwatched":
            log.info("another worker watches the VM now", extra={"vm_id": vm_id})

    def _turn(self) -> float:
        """Do all there is to do; return for how long the next pushes may be gathered."""
        runtime = self._runtime
        recording.record_output(runtime, self._output)
        self._output = []  # only now: a failed turn records it again
        recording.record_said(runtime, self._said)
        self._said = []
        busy = self._record()
        for vm_id in list(self._suspended):
            calling.record_states(runtime, vm_id, self._suspended[vm_id])
            del self._suspended[vm_id]
        wakes, self._wakes = self._wakes, set()
        try:
            if "cancel" in wakes:
                cancelling.cancel(runtime)
            if "follow" in wakes:
                cancelling.follow(runtime)
            self._serve(wakes)
            if self._is_due(time.monotonic()) or "dispatch" in wakes:
                self._dispatch()
            if "release" in wakes:
                leasing.release_due(runtime)
            if "stop" in wakes:
                cancelling.stop_vms(runtime)
            if "ledger" in wakes:
                messages.reconcile_vms()
            if "resources" in wakes:
                messages.synchronize_all()
            if "budget" in wakes:
                messages.watch_budgets()
            if "retire" in wakes:
                messages.retire_vms()
            if "watch" in wakes:
                self._attacher.claim()
            if wakes & {"pool", "vm"}:
                sizing.resize_pools(runtime)
            self._renew()
        except BaseException:
            self._wakes |= wakes
            raise
        return _GATHER_S if busy else 0.0

    def _record(self) -> bool:
        """Record the gathered pushes; True when the runners have plenty to do meanwhile."""
        busy = False
        for vm_id in list(self._batches):
            batch = self._batches[vm_id]
            done = recording.record(self._runtime, vm_id, batch, self._runtime.links.present(vm_id))
            self._teller.recorded(vm_id, done.starts, done.ends)
            del self._batches[vm_id]  # only now: a failed turn records it again
            left = self._in_flight[vm_id] = max(0, self._in_flight[vm_id] - len(done.ends))
            if done.ends and left <= self._refill_at.get(vm_id, left):
                self._wakes.add("dispatch")
            busy = busy or left > 16
        return busy

    def _is_due(self, now: float) -> bool:
        """Tell whether a pool may grow again for what waits, or a retry's pause is over."""
        return now >= min(self._retry_at, self._resize_at)

    def _serve(self, wakes: set[str]) -> None:
        """Give VMs to those who wait for a lease, before jobs take what became free."""
        self._leases_wanted = self._leases_wanted or "lease" in wakes
        if self._leases_wanted and wakes:
            _, self._leases_wanted = leasing.serve(self._runtime)

    def _dispatch(self) -> None:
        with figures.timed_placement():
            placed = placing.dispatch(self._runtime)
        for vm_id, count in placed.items():
            level = self._in_flight[vm_id] = self._in_flight[vm_id] + count
            # More is placed when half of it is done; one at a time where little is placed ahead.
            self._refill_at[vm_id] = level // 2 if level > 16 else level
        due_s = sizing.resize_for_waiting_jobs(self._runtime)
        self._resize_at = float("inf") if due_s is None else time.monotonic() + max(0.05, due_s)
        retry_s = self._runtime.transact(next_retry_s)
        self._retry_at = float("inf") if retry_s is None else time.monotonic() + retry_s + _STEP_S

    def _renew(self) -> None:
        """Record heartbeats and renew the watches, some times in the life of a watch."""
        now = time.monotonic()
        if now < self._renew_at:
            return
        ttl_s = self._runtime.settings.watch_ttl_s
        self._renew_at = now + ttl_s / 5
        beats, self._beats = self._beats, {}
        for vm_id, order in recording.record_beats(self._runtime, beats).items():
            cancelling.end_vm(self._runtime, vm_id, order)
        self._teller.beaten(beats)
        watched = self._runtime.links.watched()
        if watched:
            worker = self._runtime.worker
            held = self._runtime.transact(
                lambda c: renew_watches(c, worker, list(watched), ttl_s=ttl_s)
            )
            for vm_id in set(watched) - held:
                self._runtime.links.drop(vm_id, watched[vm_id])
        self._attacher.claim()


_watcher: Watcher | None = None


def this_watcher() -> Watcher | None:
    """Return this process's watcher; None in a pool child or outside a worker."""
    return _watcher


class WatcherStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs the watcher with the worker, in its main process, after the pool has forked."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        """Start the watcher."""
        global _watcher
        runtime = get_runtime()
        figures.keep(runtime.settings.state_dir)
        teller = Teller(
            runtime, parent.app, worker=parent.hostname, always=bool(parent.task_events)
        )
        _watcher = Watcher(runtime, teller)
        _watcher.start()

    def stop(self, parent: Any) -> None:
        """Stop the watcher; running jobs are left alone."""
        global _watcher
        watcher, _watcher = _watcher, None
        if watcher is not None:
            watcher.stop()
        drop_runtime()

    def terminate(self, parent: Any) -> None:
        """Stop at once."""
        self.stop(parent)
