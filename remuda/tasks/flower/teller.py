"""The teller: the thread that shows this worker's VMs and their attempts to Celery monitors.

Only the worker that watches a VM speaks for it, so nothing is said twice. The watcher hands over
ids, in constant time, and only while somebody listens; what they stand for is read from the rows
here, off the hot path. What nobody hands over (a placement, a loss, outputs fetched elsewhere) is
found by a look at the rows once a second.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from celery import Celery

from remuda.errors import RemudaError
from remuda.models import observing
from remuda.models.database import reading
from remuda.models.states import VmState
from remuda.tasks.flower import wording
from remuda.tasks.flower.sampling import Sampler
from remuda.tasks.flower.wire import Wire
from remuda.tasks.runtime import Runtime

log = logging.getLogger(__name__)

LISTENING_S = 30.0  # Flower repeats every 5 s that it listens
_TURN_S = 0.5
_LOOK_S = 1.0
_LOOKED_AT = 2000  # told attempts whose end is looked for at once
_MOST_HINTS = 1000
_MOST_COUNTED = 50_000
_FREQ_S = 5.0
_VM_BEATS_S = 20.0  # heartbeats of all VMs together, per second
_TOLD_EVERY_S = 10.0
_LOGGED_EVERY_S = 60.0
_IDLE_SWEEP_S = 60.0
_MOST_SWEEPS = 300  # events
_GONE = (VmState.STOPPING, VmState.STALLED, VmState.ERROR, VmState.HALTED)


@dataclass(slots=True)
class _Vm:
    name: str
    freq_s: float
    beat_at: float = 0.0


@dataclass(slots=True)
class _Told:
    vm_id: int
    stage: int


class Teller:
    """`start` and `stop` it once; the other methods may be called by any thread."""

    def __init__(self, runtime: Runtime, app: Celery, *, worker: str, always: bool) -> None:
        """Say nothing yet. `worker`: this worker's name; `always`: whether it was started with -E."""
        settings = runtime.settings
        self._runtime = runtime
        self._worker = worker
        self._version = version("remuda")
        self._off = settings.flower_events == "off"
        self._always = always or settings.flower_events == "on"
        self._until = float("-inf")
        self._anew = False
        self._hints: queue.Queue[tuple[int, Iterable[int], Collection[int]]] = queue.Queue(
            _MOST_HINTS
        )
        self._beats: dict[int, Mapping[str, Any]] = {}
        self._processed: Counter[int] = Counter()
        self._told: dict[int, _Told] = {}
        self._vms: dict[int, _Vm] = {}
        self._look_at = 0.0
        self._sampler = Sampler(settings.flower_rate)
        self._wire = Wire(app)
        self._sweeps: deque[dict[str, Any]] = deque(maxlen=_MOST_SWEEPS)
        self._swept_at: dict[str, float] = {}
        self._window = (0.0, 0, 0)  # since when, ended, of them shown
        self._log_at = 0.0
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="remuda-teller", daemon=True)

    def start(self) -> None:
        """Start the thread; it sleeps until somebody listens."""
        if not self._off:
            self._thread.start()

    def stop(self) -> None:
        """Say that the VMs are no longer spoken for here, and end."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    @property
    def listening(self) -> bool:
        """Whether somebody listens, as far as this worker was told."""
        return not self._off and (self._always or time.monotonic() < self._until)

    def wanted(self, *, anew: bool = False) -> None:
        """Note that somebody listens; `anew`: who has heard nothing yet."""
        self._until = time.monotonic() + LISTENING_S
        self._anew = self._anew or anew
        self._wake.set()

    def unwanted(self) -> None:
        """Note that nobody listens any more."""
        self._until = float("-inf")

    def recorded(self, vm_id: int, started: Iterable[int], ended: Collection[int]) -> None:
        """Take the attempts of a VM whose start or end has just been recorded. Never blocks."""
        self._processed[vm_id] += len(ended)
        if len(self._processed) > _MOST_COUNTED:  # of VMs that are long gone
            self._processed.clear()
        if self.listening:
            try:
                self._hints.put_nowait((vm_id, started, ended))
            except queue.Full:
                self._wire.drop(len(ended))

    def beaten(self, beats: Mapping[int, Mapping[str, Any]]) -> None:
        """Take the latest heartbeats of VMs (`load`, `running`)."""
        if self.listening:
            self._beats = {**self._beats, **beats}

    def swept(self, task: str, name: str, *, began: float, found: str | None, failed: bool) -> None:
        """Take a sweep that is over; what found nothing is told once a minute."""
        now = time.monotonic()
        if not self.listening or (
            found is None and now - self._swept_at.get(name, -1e9) < _IDLE_SWEEP_S
        ):
            return
        self._swept_at[name] = now
        self._sweeps.extend(
            wording.sweep_events(
                task, name, self._worker, began=began, ended=time.time(), found=found, failed=failed
            )
        )

    # -- the thread -------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stop.is_set():
            if not self.listening:
                self._forget()
                self._wake.clear()
                if not self.listening:  # nobody came in between
                    self._wake.wait()
                continue
            self._stop.wait(_TURN_S)
            try:
                self._turn(time.monotonic())
            except RemudaError as error:
                log.debug("nothing is told to monitors: %s", error)
                self._stop.wait(_TURN_S)
            except Exception:
                log.exception("telling monitors failed; they start from anew")
                self._forget()
                self._stop.wait(5.0)
        self._wire.close()

    def _forget(self) -> None:
        self._told.clear()
        self._vms.clear()
        self._beats = {}
        self._take()
        self._wire.close()
        self._look_at = 0.0

    def _take(self) -> dict[int, tuple[set[int], set[int]]]:
        """Return what was handed over: by VM the started and the ended attempts."""
        found: dict[int, tuple[set[int], set[int]]] = {}
        while True:
            try:
                vm_id, started, ended = self._hints.get_nowait()
            except queue.Empty:
                return found
            of_vm = found.setdefault(vm_id, (set(), set()))
            of_vm[0].update(started)
            of_vm[1].update(ended)

    def _turn(self, now: float) -> None:
        if self._anew:
            self._anew = False
            self._told.clear()
            self._vms.clear()
            self._look_at = 0.0
        hints = self._take()
        moved = {a for started, ended in hints.values() for a in (*started, *ended)}
        ended = {a for _, those in hints.values() for a in those}
        fresh: set[int] = set()
        events: list[dict[str, Any]] = []
        gone: list[dict[str, Any]] = []
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            online, gone, fresh, over = self._look(now)
            events += online
            moved |= over
        new = sorted((moved | fresh) - self._told.keys())
        let_in = self._sampler.admit(new, now)
        self._count(now, ended, let_in)
        events += self._attempts([*(moved & self._told.keys()), *let_in])
        events += self._heartbeats(now)
        # Losses before their VM is offline, for whatever a task says brings it back online.
        sweeps = [self._sweeps.popleft() for _ in range(len(self._sweeps))]
        self._wire.send([*events, *gone, *sweeps, *self._sampled(now)])

    def _attempts(self, attempt_ids: list[int]) -> list[dict[str, Any]]:
        if not attempt_ids:
            return []
        with reading(self._runtime.engine) as connection:
            rows = observing.attempts_shown(connection, attempt_ids)
        events: list[dict[str, Any]] = []
        for row in rows:
            told = self._told.get(row["attempt_id"]) or _Told(row["vm_id"], 0)
            more, told.stage = wording.attempt_events(row, said=told.stage)
            events += more
            if told.stage == wording.ENDED:
                self._told.pop(row["attempt_id"], None)
            else:
                self._told[row["attempt_id"]] = told
        return events

    def _look(
        self, now: float
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], set[int], set[int]]:
        """Look at the rows: return what is online and gone, live attempts not told, told ones over."""
        watched = set(self._runtime.links.watched())
        known = list(self._told)
        # In turns, should there be very many: what was looked at goes to the end.
        looked_at = known[:_LOOKED_AT]
        if len(known) > _LOOKED_AT:
            self._told = {a: self._told[a] for a in [*known[_LOOKED_AT:], *looked_at]}
        most = self._sampler.room(now)
        with reading(self._runtime.engine) as connection:
            rows = observing.vms_shown(connection, watched | self._vms.keys())
            over = set(observing.ended_attempts(connection, looked_at)) if looked_at else set()
            fresh = (
                set(
                    observing.live_attempts_on(
                        connection, watched, known=self._told.keys(), most=most
                    )
                )
                if watched and most
                else set()
            )
        online: list[dict[str, Any]] = []
        gone: list[dict[str, Any]] = []
        for row in rows:
            vm_id, shown = row["id"], self._vms.get(row["id"])
            if row["watcher"] not in (None, self._runtime.worker):
                self._leave(vm_id)
            elif row["state"] in _GONE and vm_id not in watched:
                if shown is not None:
                    gone.append(self._vm_event("offline", vm_id, shown))
                    self._leave(vm_id, keep_attempts=True)
            elif shown is None and vm_id in watched:
                freq_s = max(_FREQ_S, 1.5 * row["heartbeat_s"], len(watched) / _VM_BEATS_S)
                shown = _Vm(wording.hostname(row["name"], row["pool"]), freq_s)
                self._vms[vm_id] = shown
                online.append(self._vm_event("online", vm_id, shown))
        return online, gone, fresh, over

    def _leave(self, vm_id: int, *, keep_attempts: bool = False) -> None:
        """Speak no more for a VM, nor (unless it is gone) for its attempts: another worker does."""
        self._vms.pop(vm_id, None)
        self._beats.pop(vm_id, None)
        self._processed.pop(vm_id, None)
        if not keep_attempts:
            self._told = {a: told for a, told in self._told.items() if told.vm_id != vm_id}

    def _heartbeats(self, now: float) -> list[dict[str, Any]]:
        beats, self._beats = self._beats, {}
        events = []
        for vm_id, beat in beats.items():
            shown = self._vms.get(vm_id)
            if shown is not None and now >= shown.beat_at:
                shown.beat_at = now + 0.8 * shown.freq_s
                events.append(self._vm_event("heartbeat", vm_id, shown, beat))
        return events

    def _vm_event(
        self, kind: str, vm_id: int, vm: _Vm, beat: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        return wording.vm_event(
            kind,
            vm.name,
            now=time.time(),
            freq_s=vm.freq_s,
            active=beat["running"] if beat else 0,
            processed=self._processed[vm_id],
            version=self._version,
            load=beat["load"] if beat else (),
        )

    # -- what is left out -------------------------------------------------------------------

    def _count(self, now: float, ended: set[int], let_in: list[int]) -> None:
        since, count, shown = self._window
        told = len(ended & self._told.keys()) + len(ended.intersection(let_in))
        self._window = (since or now, count + len(ended), shown + told)

    def _sampled(self, now: float) -> list[dict[str, Any]]:
        """Say, every few seconds, if not all attempts that ended were shown."""
        since, ended, shown = self._window
        if not since or now - since < _TOLD_EVERY_S:
            return []
        self._window = (0.0, 0, 0)
        if shown >= ended:
            return []
        if now >= self._log_at:
            self._log_at = now + _LOGGED_EVERY_S
            log.info(
                "monitors are shown %d of the %d attempts that ended in the last %.0f s "
                "(REMUDA_FLOWER_RATE is %g/s)",
                shown, ended, now - since, self._sampler.rate,
            )  # fmt: skip
        return wording.sampled_events(
            str(uuid.uuid4()), self._worker, now=time.time(), shown=shown, ended=ended,
            rate=self._sampler.rate,
        )  # fmt: skip
