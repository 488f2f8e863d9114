"""Whether a machine is what was promised: a pure comparison of what it has with what it is for."""

from __future__ import annotations

from dataclasses import dataclass

# A kernel keeps some of the memory a flavor is sold with for itself.
TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Promised:
    """What the image and the pool say of a VM; None: nothing.

    `whole`: the VM is a machine of its own, not a part of one that others share.
    """

    slots: int
    memory_bytes: int | None = None
    architecture: str | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Measured:
    """What its runner found; None: it could not tell."""

    cores: int | None
    memory_bytes: int | None
    architecture: str


def shortfall(promised: Promised, measured: Measured) -> str | None:
    """Return in what the machine is less than it should be; None if it is not."""
    wrong = []
    if promised.architecture is not None and promised.architecture != measured.architecture:
        wrong.append(f"its architecture is {measured.architecture}, not {promised.architecture}")
    if promised.whole and measured.cores is not None and measured.cores < promised.slots:
        wrong.append(f"it has {measured.cores} cores for {promised.slots} slots")
    least = (promised.memory_bytes or 0) * (1 - TOLERANCE)
    if promised.whole and measured.memory_bytes is not None and measured.memory_bytes < least:
        wrong.append(f"it has {measured.memory_bytes} bytes of memory, not {promised.memory_bytes}")
    return "; ".join(wrong) or None
