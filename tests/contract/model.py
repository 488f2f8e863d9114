"""A model of what a VM of two slots does with attempts: what the state machines compare it with."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Try:
    """An attempt as the model has it."""

    a: int
    j: int
    e: int
    cores: int
    state: str = "queued"  # "running", "exited" or "stale"
    why: str = ""


@dataclass
class Model:
    """First come first served; a job's older attempt ends before its newer one starts."""

    slots: int = 2
    floor: int = 0
    known: dict[int, Try] = field(default_factory=dict)
    queue: list[Try] = field(default_factory=list)
    newest: dict[int, Try] = field(default_factory=dict)  # by job

    def of(self, *states: str) -> list[Try]:
        """Return the attempts in these states."""
        return [t for t in self.known.values() if t.state in states]

    def start(self, tries: list[Try], floor: int) -> dict[int, str]:
        """Take a batch on; return what the answer is to be, before anything new has begun."""
        states = {}
        self.floor = max(self.floor, floor)
        for new in tries:
            present = self.known.get(new.a)
            newest = self.newest.get(new.j)
            old = new.a < self.floor or (newest is not None and new.e < newest.e)
            if present is None and not old:
                self.known[new.a] = self.newest[new.j] = new
                self.queue.append(new)
                if newest is not None and newest.state in ("queued", "running"):
                    self.end(newest, "CANCELLED", settled=False)
            states[new.a] = self.known[new.a].state if new.a in self.known else "stale"
        return states

    def end(self, one: Try, why: str, *, settled: bool = True) -> None:
        """Have an attempt end."""
        one.state, one.why = "exited", why
        if settled:
            self.settle()

    def settle(self) -> None:
        """Start what can."""
        while self.queue:
            head = self.queue[0]
            if head.state == "queued":
                running = self.of("running")
                free = self.slots - sum(t.cores for t in running)
                if head.cores > free or head.j in {t.j for t in running}:
                    return
                head.state = "running"
            self.queue.pop(0)

    def recall(self, ids: list[int]) -> list[int]:
        """Take back what has not begun; return what the answer is to be."""
        taken = [t for a in dict.fromkeys(ids) if (t := self.known.get(a)) and t.state == "queued"]
        for one in taken:
            one.state = "stale"
        self.settle()
        return [one.a for one in taken]

    def cancel(self, ids: list[int]) -> list[int]:
        """End attempts; return which are unknown."""
        for a in ids:
            one = self.known.get(a)
            if one and one.state in ("queued", "running"):
                self.end(one, "CANCELLED", settled=False)
        self.settle()
        return [a for a in ids if a not in self.known]

    def forgettable(self, ids: list[int]) -> list[int]:
        """Return which have ended below the floor: a runner started anew may not know them."""
        found = [(a, self.known[a].state) for a in ids if a in self.known and a < self.floor]
        return [a for a, state in found if state in ("exited", "stale")]

    def free(self, ids: list[int]) -> None:
        """Forget what has ended; what never came never will."""
        for a in ids:
            one = self.known.setdefault(a, Try(a, 0, 0, 0, "stale"))
            if one.state == "exited":
                one.state = "stale"

    def kill(self) -> None:
        """Have the runner be killed and started again.

        It may forget what had ended below the floor: that never starts again anyhow.
        """
        for one in self.of("queued", "running"):
            one.state, one.why = "exited", "LOST"
        self.queue.clear()
