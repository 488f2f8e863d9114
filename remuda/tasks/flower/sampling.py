"""Which attempts are shown when there are more than the rate allows. Pure: `now` is given."""

from __future__ import annotations

from collections.abc import Sequence


class Sampler:
    """A token bucket; an attempt that was let in is shown to its end."""

    def __init__(self, rate: float) -> None:
        """Let in `rate` attempts a second, and those of two seconds in a burst."""
        self.rate = rate
        self._tokens = 2 * rate
        self._at: float | None = None

    def room(self, now: float) -> int:
        """Return how many attempts may be let in at `now`, seconds of a monotonic clock."""
        if self._at is not None:
            earned = max(0.0, now - self._at) * self.rate
            self._tokens = min(2 * self.rate, self._tokens + earned)
        self._at = now
        return int(self._tokens)

    def admit(self, attempt_ids: Sequence[int], now: float) -> list[int]:
        """Return those let in: all, or as many as there is room for, evenly from all of them."""
        room = self.room(now)
        count = len(attempt_ids)
        taken = (
            list(attempt_ids)
            if count <= room
            else [attempt_ids[i * count // room] for i in range(room)]
        )
        self._tokens -= len(taken)
        return taken
