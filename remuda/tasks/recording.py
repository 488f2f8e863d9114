"""Record what a runner pushed: one transaction a batch, then tell the runner it may forget."""

from __future__ import annotations

import base64
import contextlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from remuda.errors import Unreachable
from remuda.models import collect, exits, vm_outputs, watches
from remuda.models.cancel import insert_chunks
from remuda.tasks import decisions, logs, messages
from remuda.tasks.runtime import Runtime
from remuda.workers.channel import Channel

log = logging.getLogger(__name__)
_DRIFT = 1e-4  # clocks that run apart by more than this are broken
_RESTARTED_S = 60.0


@dataclass(slots=True)
class Clock:
    """How far a runner's clock is before ours, in seconds.

    What comes late makes it look smaller, never larger: so the largest of what was seen counts.
    """

    offset_s: float = -math.inf
    at: float = 0.0

    def heard(self, now: float, *, came_at: float) -> float:
        """Take in that it was `now` there at `came_at` of our monotonic clock; return the offset."""
        seen = now - came_at
        kept = self.offset_s - (came_at - self.at) * _DRIFT
        # Far behind what it was: not late, the machine began anew.
        self.offset_s = max(seen, kept) if kept - seen < _RESTARTED_S else seen
        self.at = came_at
        return self.offset_s


@dataclass(slots=True)
class Batch:
    """Entries of one VM's journal, each with how far the runner's clock is before ours.

    However long a batch waits (for the database, say), its ages stay right.
    """

    entries: list[tuple[dict[str, Any], float]] = field(default_factory=list)

    def add(self, push: Mapping[str, Any], *, came_at: float, clock: Clock | None = None) -> None:
        """Take the entries of a push that came at `came_at` of our monotonic clock.

        `clock`: what was learned of the runner's before.
        """
        offset = (clock or Clock()).heard(push["now"], came_at=came_at)
        self.entries.extend((entry, offset) for entry in push["entries"])


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a batch led to: the attempts with outputs to fetch, and the sandboxes to remove.

    `starts`, `ends`: the attempts that did.
    """

    mark: int
    to_collect: list[int]
    to_free: list[int]
    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()


def record(runtime: Runtime, vm_id: int, batch: Batch, channel: Channel | None) -> Recorded:
    """Record a batch, acknowledge it to the runner, send for the outputs; return what it led to."""
    done = runtime.transact(lambda c: _record(c, vm_id, batch))
    if channel is not None:
        try:
            channel.send("ack", n=done.mark)
            if done.to_free:
                channel.send("free", a=done.to_free)
        except Unreachable:
            log.debug("VM %d left before the acknowledgement", vm_id)
    if done.to_collect:
        messages.get_results(vm_id, done.to_collect)
    return done


def _record(connection: Connection, vm_id: int, batch: Batch) -> Recorded:
    mark = exits.lock_journal(connection, vm_id)
    if mark is None:
        return Recorded(0, [], [])
    clock = time.monotonic()
    fresh = {e["n"]: (e, clock + offset) for e, offset in batch.entries if e["n"] > mark}
    ended = {e["a"]: (e, now) for e, now in fresh.values() if e["t"] == "exit"}
    starts = {
        e["a"]: max(0.0, now - e["at"])
        for e, now in fresh.values()
        if e["t"] == "start" and e["a"] not in ended
    }
    newest = max(fresh, default=mark)
    exits.lock_jobs(connection, [*starts, *ended])
    exits.record_starts(connection, vm_id, starts)
    outcomes = decisions.of_entries(connection, list(ended.values()))
    outputs = [row for e, _ in ended.values() for row in decisions.inline_outputs(e)]
    live = exits.record_ends(connection, vm_id, outcomes, outputs, journal_n=newest)
    by_id = {outcome.attempt_id: outcome for outcome in outcomes}
    tell(connection, vm_id, [*starts, *live])
    to_collect = [a for a in live if by_id[a].state == "EXITED"]
    to_free = [a for a, (e, _) in ended.items() if e.get("box") and a not in to_collect]
    return Recorded(newest, to_collect, to_free, tuple(starts), tuple(live))


def tell(connection: Connection, vm_id: int, attempt_ids: Sequence[int]) -> None:
    """Log where attempts and their jobs have come to, one line each, if that is wanted."""
    if not (attempt_ids and logs.tells_jobs()):
        return
    for row in exits.states_of(connection, attempt_ids):
        ids = {"vm_id": vm_id, "reason": row["reason"]}
        logs.transition("attempt", row["attempt_id"], row["state"], job_id=row["job_id"], **ids)
        logs.transition("job", row["job_id"], row["job_state"], attempt_id=row["attempt_id"], **ids)


def lose_attempts(connection: Connection, vm_id: int, message: str) -> int:
    """End all live attempts of the VM as LOST, their jobs NEW again if they may; return how many.

    Of a VM whose provider had announced to take it away the losses do not count, and the jobs go
    first. The VM's row must be locked.
    """
    attempts = collect.live_attempts(connection, [vm_id])
    if not attempts:
        return 0
    displaced = collect.is_interrupted(connection, vm_id)
    on_their_way, exited = decisions.lost(connection, attempts, message, displaced=displaced)
    if on_their_way:
        exits.record_ends(connection, vm_id, on_their_way)
    if exited:
        collect.finish(connection, vm_id, exited)
    tell(connection, vm_id, [row["attempt_id"] for row in attempts])
    return len(attempts)


def record_output(runtime: Runtime, pushes: Sequence[Mapping[str, Any]]) -> None:
    """Store pushed output of followed attempts."""
    chunks = [
        {
            "attempt_id": push["a"],
            "stream": push["s"],
            "at_byte": push["at"],
            "data": base64.b64decode(push["d"]),
            "cut_from": push.get("cut"),
        }
        for push in pushes
    ]
    if chunks:
        runtime.transact(lambda c: insert_chunks(c, chunks))


def record_said(runtime: Runtime, pushes: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    """Store what VMs themselves said, and tell their runners that it is stored."""
    said = [
        vm_outputs.Said(vm_id, push["s"], push["at"], base64.b64decode(push["d"]))
        for vm_id, push in pushes
    ]
    if not said:
        return
    runtime.transact(lambda c: vm_outputs.record(c, said))
    for piece in said:
        channel = runtime.links.present(piece.vm_id)
        if channel is not None:
            with contextlib.suppress(Unreachable):
                channel.send("said_ack", s=piece.stream, n=piece.end)


def take_said(runtime: Runtime, vm_id: int, channel: Channel) -> None:
    """Ask a VM's runner for what it said and store it: of a VM that nobody watches yet."""
    for stream in ("stdout", "stderr"):
        while True:
            known = runtime.transact(lambda c: vm_outputs.recorded(c, vm_id, stream))  # noqa: B023
            answer = channel.request("said", s=stream, offset=known)
            data = base64.b64decode(answer["d"])
            if not data:
                break
            said = [vm_outputs.Said(vm_id, stream, int(answer["at"]), data)]
            runtime.transact(lambda c: vm_outputs.record(c, said))  # noqa: B023


def record_beats(
    runtime: Runtime, beats: Mapping[int, Mapping[str, Any]]
) -> dict[int, watches.Order]:
    """Store the latest heartbeat of each VM; return which of them should not be alive.

    One that makes no sense is left out, so that it keeps no other from being stored.
    """
    found = []
    for vm_id, beat in beats.items():
        try:
            found.append(_beat(vm_id, beat))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            log.warning("a heartbeat of VM %d makes no sense: %r", vm_id, error)
    return runtime.transact(lambda c: watches.record_heartbeats(c, found)) if found else {}


def _beat(vm_id: int, beat: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vm_id": vm_id,
        "load": _real(beat["load"][0]),
        "running_jobs": _whole(beat["running"], bits=31),
        "queued_jobs": _whole(beat["queued"], bits=31),
        "cores": _whole(beat["cores"], bits=31) if "cores" in beat else None,
        "memory_free_bytes": _whole(beat["mem_free"]),
        "disk_free_bytes": _whole(beat["disk_free"]),
        "transferred_files": _whole(beat.get("moved_files", 0)),  # runners of old do not tell
        "transferred_bytes": _whole(beat.get("moved_bytes", 0)),
        "uptime_s": _real(beat["uptime"]),
    }


def _real(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{number} is out of range")
    return number


def _whole(value: Any, *, bits: int = 63) -> int:
    number = int(value)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{number} is out of range")
    return number
