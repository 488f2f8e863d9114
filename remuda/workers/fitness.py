"""Whether a machine is what was promised: a pure comparison of what it has with what it is for."""

from __future__ import annotations

from dataclasses import dataclass

# A kernel keeps some of the memory a flavor is sold with for itself: a part, of small ones so much.
TOLERANCE = 0.1
KERNEL_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Promised:
    """What is said of a VM; None: nothing.

    `cores` and `memory_bytes` by whom makes it, `least_memory_bytes` and `architecture` by its pool.
    `whole`: the VM is a machine of its own, not a part of one that others share.
    """

    cores: int | None = None
    memory_bytes: int | None = None
    least_memory_bytes: int | None = None
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
    if not promised.whole:
        return "; ".join(wrong) or None
    if promised.cores and measured.cores is not None and measured.cores < promised.cores:
        wrong.append(f"it has {measured.cores} cores, not the {promised.cores} its provider says")
    for memory_bytes, who in (
        (promised.memory_bytes, "its provider says"),
        (promised.least_memory_bytes, "its pool asks"),
    ):
        if memory_bytes and measured.memory_bytes is not None:
            kept = max(memory_bytes * TOLERANCE, KERNEL_BYTES)
            if measured.memory_bytes < memory_bytes - kept:
                wrong.append(
                    f"it has {measured.memory_bytes} bytes of memory, not the {memory_bytes} {who}"
                )
    return "; ".join(wrong) or None
