"""The books of a pool: what its provider has against the rows. Pure; the effects are in tasks.

A provider that says nothing is no news. What a complete list lacks is asked for by name, and gone
only if that is denied too. When most of a pool is denied at once the answer itself is doubted:
nothing is believed until a second look after a grace, or until an operator says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

# A machine that was just made may be missing in the lists of some clouds for a while.
SETTLE_S = 60.0
MASS = 3  # fewer than so many lost VMs are never a mass

_THERE = ("WAIT_SSH_CONTEXT", "CONTEXTUALIZING", "RUNNING", "STALLED")


@dataclass(frozen=True, slots=True)
class VmRow:
    """A VM that is not HALTED; `since`: when it came to its state."""

    id: int
    state: str
    provider_id: str | None
    token: str
    since: datetime
    interruption_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine the provider has and that is not gone."""

    provider_id: str
    token: str
    interruption_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`missing`: VMs the list lacks; `unowned`: machines no VM owns; `interrupted`: news of when."""

    missing: tuple[VmRow, ...]
    unowned: tuple[Machine, ...]
    interrupted: Mapping[int, datetime]


def compare(rows: Iterable[VmRow], machines: Sequence[Machine], now: datetime) -> Comparison:
    """Return how a pool's rows and its provider's complete list differ.

    A machine belongs to the row that has its provider's id, or its token and no such id yet. One
    more machine of a token that has one already belongs to nobody.
    """
    rows = list(rows)
    by_id = {row.provider_id: row for row in rows if row.provider_id is not None}
    asked = {row.token for row in rows if row.provider_id is None}
    listed = {machine.provider_id for machine in machines}
    missing = tuple(
        row for row in rows if row.provider_id not in listed and _should_be_there(row, now)
    )
    unowned = tuple(
        machine
        for machine in machines
        if machine.provider_id not in by_id and machine.token not in asked
    )
    interrupted = {
        row.id: machine.interruption_at
        for machine in machines
        if machine.interruption_at is not None
        and (row := by_id.get(machine.provider_id)) is not None
        and row.interruption_at != machine.interruption_at
    }
    return Comparison(missing, unowned, interrupted)


def _should_be_there(row: VmRow, now: datetime) -> bool:
    if row.provider_id is None:
        return False
    if row.state == "SUBMITTED":
        return now - row.since >= timedelta(seconds=SETTLE_S)
    return row.state in _THERE


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about VMs that the provider denies: BELIEVE it, FREEZE the pool, or WAIT on."""

    what: Literal["BELIEVE", "FREEZE", "WAIT"]
    reason: str = ""


def judge(
    *,
    gone: Collection[int],
    live: int,
    now: datetime,
    frozen_at: datetime | None,
    confirmed: bool,
    grace_s: float,
) -> Verdict:
    """Return whether to believe that these of the pool's `live` VMs are gone.

    More than half of them, and at least `MASS`, is not believed on first sight: not before
    `grace_s` seconds after the pool was frozen for it, or before an operator `confirmed` it.
    """
    if len(gone) < MASS or 2 * len(gone) <= live:
        return Verdict("BELIEVE")
    if confirmed:
        return Verdict("BELIEVE", "an operator confirmed the loss")
    reason = f"the provider no longer has {len(gone)} of {live} VMs"
    if frozen_at is None:
        return Verdict("FREEZE", reason)
    if now - frozen_at >= timedelta(seconds=grace_s):
        return Verdict("BELIEVE", f"{reason}, still after {grace_s:g} s")
    return Verdict("WAIT", reason)
