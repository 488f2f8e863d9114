"""The faults of simulated VMs: what goes wrong, how often, and from which seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, MutableSequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from remuda import errors
from remuda.checks import shown
from remuda.errors import BadInput, ProviderError

__all__ = ["Faults", "ProviderFaults", "of_settings"]

_Kind = TypeVar("_Kind", "Faults", "ProviderFaults")
CALLS = ("spawn", "describe", "list", "terminate")


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

    `spawn`, `describe`, `list`, `terminate`: names of ProviderErrors, one raised by each call in
    turn ("" lets one pass). `lose_spawns`: so many VMs are made while the caller meets a
    TransientProviderError. `boot_s`: how long a VM is pending.
    """

    spawn: MutableSequence[str] = field(default_factory=list)
    describe: MutableSequence[str] = field(default_factory=list)
    terminate: MutableSequence[str] = field(default_factory=list)
    list: MutableSequence[str] = field(default_factory=list)  # last: its name hides the type
    lose_spawns: int = 0
    boot_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what names no ProviderError; own the lists."""
        for call in CALLS:
            names = [*map(str, getattr(self, call))]
            setattr(self, call, names)
            for name in filter(None, names):
                kind = getattr(errors, name, None)
                if not (isinstance(kind, type) and issubclass(kind, ProviderError)):
                    raise BadInput(f"{shown(name)} is no ProviderError")

    def strike(self, call: str) -> None:
        """Raise the error that is due for this call, if one is."""
        due = getattr(self, call)
        name = due.pop(0) if due else ""
        if name:
            error: ProviderError = getattr(errors, name)(f"{call} failed, as the noop was told to")
            raise error


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
