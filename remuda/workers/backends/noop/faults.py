"""The faults of simulated VMs: what goes wrong, how often, and from which seed."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, MutableSequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from remuda import errors
from remuda.checks import shown
from remuda.errors import (
    BadInput,
    CapacityError,
    ProviderError,
    QuotaExceeded,
    TransientProviderError,
    VmUnreachable,
)

__all__ = ["Faults", "ProviderFaults", "of_settings"]

_Kind = TypeVar("_Kind", "Faults", "ProviderFaults")
CALLS = ("spawn", "describe", "list", "terminate", "livecheck", "release")
ACTS = ("hang", "half", "lost")


@dataclass
class Faults:
    """What goes wrong between a controller and one VM. Counts are used up; rates are from 0 to 1.

    `refuse_connects`: so many connects find no runner. `drop_after`: each channel breaks after so
    many requests, the answer to the last one lost (0: never). `drop_rate`: a channel breaks at a
    request, before or after it was done. `cut_requests`, `cut_answers`: so many requests break their
    channel, before or after they were done. `lose_answers`, `lose_rate`: a request is done, its answer
    never comes. `answer_delay_s`: every answer comes so late. `duplicate_rate`: a push comes twice.
    `not_ready`: so many submissions meet ResourceNotReady. `full`: every one meets
    MaximumCapacityReached. `staging`: every input fails with this message. `seed`: of the rates.
    """

    seed: int = 0
    refuse_connects: int = 0
    drop_after: int = 0
    drop_rate: float = 0.0
    cut_requests: int = 0
    cut_answers: int = 0
    lose_answers: int = 0
    lose_rate: float = 0.0
    answer_delay_s: float = 0.0
    duplicate_rate: float = 0.0
    not_ready: int = 0
    full: bool = False
    staging: str = ""
    _random: random.Random = field(default_factory=random.Random, init=False, repr=False)

    def __post_init__(self) -> None:
        """Begin the sequence of the seed."""
        self._random.seed(self.seed)

    def happens(self, rate: float) -> bool:
        """Throw the dice."""
        return rate > 0 and self._random.random() < rate

    def use_up(self, name: str) -> bool:
        """Take one from a count; False if nothing is left of it."""
        left = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return bool(left > 0)


@dataclass
class ProviderFaults:
    """What goes wrong between a controller and the provider.

    `spawn`, `describe`, `list`, `terminate`, `livecheck`, `release`: what becomes of each call in
    turn. The name of a ProviderError (or of VmUnreachable): it is raised. "": the call passes.
    "hang": it does not come back before `let_go` is called. "lost": it is done, and its answer does
    not come. "half": of describe and list, every second VM is left out, and nothing says so.

    `lose_spawns`: so many VMs are made while the caller meets a TransientProviderError. `down`: every
    call meets one. `no_capacity`, `no_quota`: offers of which no VM can be had. `boot_s`: how long a
    VM is pending. `address`, `ip`: what every VM is said to have, instead of its own. `prices`: what
    offers cost, as "name=0.1"; of others no price is known.
    """

    spawn: MutableSequence[str] = field(default_factory=list)
    describe: MutableSequence[str] = field(default_factory=list)
    terminate: MutableSequence[str] = field(default_factory=list)
    livecheck: MutableSequence[str] = field(default_factory=list)
    release: MutableSequence[str] = field(default_factory=list)
    no_capacity: MutableSequence[str] = field(default_factory=list)
    no_quota: MutableSequence[str] = field(default_factory=list)
    prices: MutableSequence[str] = field(default_factory=list)
    list: MutableSequence[str] = field(default_factory=list)  # last: its name hides the type
    lose_spawns: int = 0
    down: bool = False
    boot_s: float = 0.0
    address: str = ""
    ip: str = ""
    _free: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what names no ProviderError; own the lists."""
        for call in CALLS:
            names = [*map(str, getattr(self, call))]
            setattr(self, call, names)
            for name in filter(None, names):
                kind = getattr(errors, name, None)
                known = isinstance(kind, type) and issubclass(kind, (ProviderError, VmUnreachable))
                if not known and name not in ACTS:
                    raise BadInput(f"{shown(name)} is no ProviderError", hint=f"or {ACTS}")
        self.no_capacity, self.no_quota = [*self.no_capacity], [*self.no_quota]

    def strike(self, call: str) -> str:
        """Do what is due for this call: raise, or hang; return "half", "lost" or "".

        Calls of several threads take what is due in the order they come.
        """
        due = getattr(self, call)
        try:
            name = due.pop(0)
        except IndexError:
            name = ""
        if self.down:
            raise TransientProviderError(f"the noop is down: it does not {call}")
        if name == "hang":
            self._free.wait()
        elif name and name not in ACTS:
            error: Exception = getattr(errors, name)(f"{call} failed, as the noop was told to")
            raise error
        return name if name in ACTS else ""

    def refuse(self, offer: str) -> None:
        """Raise if no VM of this offer is to be had."""
        if offer in self.no_capacity:
            raise CapacityError(f"there is no capacity for {offer or 'this'}")
        if offer in self.no_quota:
            raise QuotaExceeded(f"the quota of {offer or 'this'} is used up")

    def price_of(self, offer: str) -> float | None:
        """Return what an offer costs; None: nobody knows."""
        if self.down:
            raise TransientProviderError("the noop is down: it tells no price")
        told = dict(pair.rpartition("=")[::2] for pair in self.prices)
        return float(told[offer]) if offer in told else None

    def let_go(self) -> None:
        """Let the calls that hang go on, and those that would hang from now on."""
        self._free.set()


def of_settings(kind: type[_Kind], values: Any, *, what: str) -> _Kind:
    """Make faults from a pool's settings; BadInput naming what is wrong."""
    if not isinstance(values, Mapping):
        raise BadInput(f"{what} must be a table, not {shown(values)}")
    defaults = {f.name: f.default for f in fields(kind) if f.init}
    for name, value in values.items():
        if name not in defaults:
            raise BadInput(f"{what} has no {name}", hint=f"known: {', '.join(defaults)}")
        if not _fits(value, defaults[name]):
            raise BadInput(f"{what}.{name} cannot be {shown(value)}")
    return kind(**values)


def _fits(value: Any, default: Any) -> bool:
    if default is MISSING:
        return isinstance(value, list)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, str):
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value >= 0 and (isinstance(default, float) or isinstance(value, int))
