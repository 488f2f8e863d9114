"""How many more VMs the waiting work needs: a pure function of its shapes and of what is free.

Slots alone do not tell: two VMs with a free slot each have no room for a job of two cores, nor has
an idle VM that serves somebody else. The work is packed, the widest first, into what the VMs have
free; what is left over is packed into new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from remuda.constraints import Hardware, unmet

Key = tuple[int, str]  # whom a VM is bound to


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """`count` waiting jobs (or leases) of one shape; `key`: whose, where the pool isolates."""

    count: int
    cores: int
    memory_bytes: int = 0
    gpus: int = 0
    architecture: str | None = None
    constraints: Mapping[str, Any] | None = None
    key: Key | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a VM has free; memory None: without limit. `hardware` None: not measured yet."""

    slots: int
    memory_bytes: int | None = None
    gpus: int = 0
    hardware: Hardware | None = None
    key: Key | None = None
    vm_id: int = 0


@dataclass(frozen=True, slots=True)
class Packing:
    """`fresh_vms`: VMs it takes besides those there are. `used`: those of them that it needs.

    `clean_slots`: what then is left free of VMs that are nobody's, the new ones included.
    """

    fresh_vms: int
    used: frozenset[int]
    clean_slots: int


def pack(
    demands: Iterable[Demand], rooms: Sequence[Room], *, fresh: Room, single_use: bool = False
) -> Packing:
    """Pack the demands into the rooms, those first in the sequence first, then into `fresh` ones.

    `single_use`: a VM takes one job and no more. What fits no fresh VM asks for none.
    """
    left = list(rooms)
    used: set[int] = set()
    fresh_vms = 0
    for demand in sorted(demands, key=_width, reverse=True):
        count = demand.count
        for place in sorted(range(len(left)), key=lambda place: left[place].key is None):
            if not count:
                break
            here = min(count, _times(demand, left[place], single_use=single_use))
            if here:
                count -= here
                used.add(left[place].vm_id)
                left[place] = _less(left[place], demand, here, single_use=single_use)
        each = _times(demand, fresh, single_use=single_use)
        if count and each:
            new = -(-count // each)
            fresh_vms += new
            rest = count - (new - 1) * each
            left.append(_less(fresh, demand, rest, single_use=single_use))
            if (
                new > 1
            ):  # what the full ones have left is alike; a few of them are enough to look at
                spare = _less(fresh, demand, each, single_use=single_use)
                left.extend([spare] * (min(new - 1, 32) if spare.slots else 0))
        left = [room for room in left if room.slots > 0]
    clean = sum(room.slots for room in left if room.key is None)
    return Packing(fresh_vms, frozenset(used - {0}), clean)


def _width(demand: Demand) -> tuple[int, int, int]:
    return demand.gpus, demand.cores, demand.memory_bytes


def _times(demand: Demand, room: Room, *, single_use: bool) -> int:
    """Return how often a job of the demand fits the room."""
    if room.key is not None and (single_use or room.key != demand.key):
        return 0
    times = room.slots // demand.cores
    if demand.memory_bytes and room.memory_bytes is not None:
        times = min(times, max(0, room.memory_bytes) // demand.memory_bytes)
    if demand.gpus:
        times = min(times, max(0, room.gpus) // demand.gpus)
    if times <= 0 or (
        room.hardware is not None
        and (demand.architecture is not None or demand.constraints)
        and unmet(room.hardware, architecture=demand.architecture, constraints=demand.constraints)
    ):
        return 0
    return 1 if single_use else times


def _less(room: Room, demand: Demand, times: int, *, single_use: bool) -> Room:
    if single_use:
        return replace(room, slots=0)
    memory = room.memory_bytes
    return replace(
        room,
        slots=room.slots - times * demand.cores,
        memory_bytes=None if memory is None else memory - times * demand.memory_bytes,
        gpus=room.gpus - times * demand.gpus,
        key=demand.key if room.key is None else room.key,
    )
