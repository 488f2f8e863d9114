"""What of a resource is taken: exact at every step, whatever is repeated."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from remuda.errors import MaximumCapacityReached

__all__ = ["Accounts"]


@dataclass
class _Taken:
    cores: int
    running: bool = False


class Accounts:
    """The slots of one resource and who has them; for use by many threads.

    A job takes its slots when it is accepted, and gives them back when its end is known. Jobs of
    others count one slot each while they run.
    """

    def __init__(self, name: str, max_cores: int) -> None:
        """Begin with nothing taken."""
        self._name, self._max_cores = name, max_cores
        self._lock = threading.Lock()
        self._taken: dict[int, _Taken] = {}
        self._others_running = self._others_queued = 0

    def __contains__(self, attempt_id: int) -> bool:
        with self._lock:
            return attempt_id in self._taken

    def take(self, attempt_id: int, cores: int) -> bool:
        """Take slots for an attempt; False if it has them. Raises MaximumCapacityReached."""
        with self._lock:
            if attempt_id in self._taken:
                return False
            free = self._free()
            if cores > free:
                raise MaximumCapacityReached(
                    f"{self._name} has {free} of {self._max_cores} slots free, the job needs {cores}",
                    hint="try again when a job has ended",
                )
            self._taken[attempt_id] = _Taken(cores)
            return True

    def adopt(self, attempt_id: int, cores: int) -> None:
        """Count an attempt that the resource had accepted before; harmless when repeated."""
        with self._lock:
            self._taken.setdefault(attempt_id, _Taken(cores))

    def began(self, attempt_id: int) -> None:
        """Note that it runs."""
        with self._lock:
            if attempt_id in self._taken:
                self._taken[attempt_id].running = True

    def give_back(self, attempt_id: int) -> None:
        """Note that it is over; harmless when repeated or unknown."""
        with self._lock:
            self._taken.pop(attempt_id, None)

    def observe(self, *, queued: Iterable[int], running: Iterable[int]) -> None:
        """Learn what there is on the resource: ours that run, and how many of others."""
        queued, running = set(queued), set(running)
        with self._lock:
            for attempt_id in running & self._taken.keys():
                self._taken[attempt_id].running = True
            self._others_running = len(running - self._taken.keys())
            self._others_queued = len(queued - self._taken.keys())

    @property
    def free_slots(self) -> int:
        """How many slots nobody has; never below 0."""
        with self._lock:
            return max(0, self._free())

    @property
    def user_run(self) -> int:
        """How many of our jobs run."""
        with self._lock:
            return sum(taken.running for taken in self._taken.values())

    @property
    def user_queued(self) -> int:
        """How many of our jobs were accepted and do not run yet."""
        with self._lock:
            return sum(not taken.running for taken in self._taken.values())

    @property
    def queued(self) -> int:
        """How many jobs wait, ours and others'."""
        return self.user_queued + self._others_queued

    def _free(self) -> int:
        ours = sum(taken.cores for taken in self._taken.values())
        return self._max_cores - ours - self._others_running
