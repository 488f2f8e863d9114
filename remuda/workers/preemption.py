"""Which VMs of flex pools make room for work that is not: a pure function of who waits for what.

Others' work waits where a limit over several pools is reached, or every host of a shelf is taken.
Then as many VMs of flex pools go as it takes and none more: those on which least work is lost, so
what does not run yet and what is idle first, then the youngest. What is on its way out counts as
gone, so that nothing is taken twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from remuda.workers.ceilings import Limit, PoolUse, limits_over, shortfall

__all__ = ["FlexVm", "Wish", "preempt"]


@dataclass(frozen=True, slots=True)
class FlexVm:
    """A VM of a flex pool that may go. `lost_s`: the slot-seconds of work that would be lost.

    `host`: of a shelf; "" for VMs that are made elsewhere.
    """

    id: int
    pool_id: int
    slots: int
    running: bool = True
    lost_s: float = 0.0
    host: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """`vms` that a pool's work needs, and that only others keep from it.

    `hosts`: of its shelf, one of which each takes; none: it is limits over several pools that keep
    them away. `coming`: hosts that will be free in a moment, or are since it was refused one.
    """

    pool_id: int
    vms: int
    slots_per_vm: int
    hosts: frozenset[str] = frozenset()
    coming: int = 0


def preempt(
    wishes: Sequence[Wish],
    flex: Sequence[FlexVm],
    uses: Sequence[PoolUse],
    *,
    most: int | None,
    of_groups: Mapping[str, int],
) -> dict[int, int]:
    """Return the VMs to preempt, each with the pool it goes for; wishes are heard in their order."""
    left = sorted(flex, key=lambda vm: (vm.lost_s, vm.running, -vm.id))
    now = {use.id: use for use in uses}
    gone: dict[int, int] = {}
    for wish in wishes:
        if wish.hosts:
            chosen = [vm for vm in left if vm.host in wish.hosts]
            chosen = chosen[: max(0, wish.vms - wish.coming)]
        else:
            limits = limits_over(wish.pool_id, list(now.values()), most=most, of_groups=of_groups)
            vms, chosen = _for_room(wish, left, limits)
            mine = now[wish.pool_id]  # what it will have is not there for the next one
            more = vms * wish.slots_per_vm
            now[wish.pool_id] = replace(mine, used=mine.used + more, alive=mine.alive + more)
        for vm in chosen:
            use = now[vm.pool_id]
            now[vm.pool_id] = replace(
                use, leaving=use.leaving + vm.slots, alive=use.alive - vm.slots
            )
            gone[vm.id] = wish.pool_id
        left = [vm for vm in left if vm.id not in gone]
    return gone


def _for_room(
    wish: Wish, flex: Sequence[FlexVm], limits: Sequence[Limit]
) -> tuple[int, list[FlexVm]]:
    """Return how many VMs a pool will have room for, at most those it wishes, and what must go."""
    under = [({use.id for use in limit.uses}, limit) for limit in limits]
    there = [sum(vm.slots for vm in flex if vm.pool_id in pools) for pools, _ in under]
    for vms in range(wish.vms, 0, -1):
        wanted = vms * wish.slots_per_vm
        needs = [shortfall(wish.pool_id, limit, wanted=wanted) for limit in limits]
        if all(need <= most for need, most in zip(needs, there, strict=True)):
            pools = [(pools, need) for (pools, _), need in zip(under, needs, strict=True)]
            return vms, _cover(flex, pools)
    return 0, []


def _cover(flex: Sequence[FlexVm], needs: Sequence[tuple[set[int], int]]) -> list[FlexVm]:
    """Return VMs, the first ones that do, with so many slots of each of these sets of pools."""

    def lacks(chosen: Sequence[FlexVm], pools: set[int], need: int) -> bool:
        return sum(vm.slots for vm in chosen if vm.pool_id in pools) < need

    chosen: list[FlexVm] = []
    for pools, need in needs:
        for vm in flex:
            if not lacks(chosen, pools, need):
                break
            if vm.pool_id in pools and vm not in chosen:
                chosen.append(vm)
    for vm in sorted(chosen, key=lambda vm: (-vm.lost_s, not vm.running, vm.id)):
        rest = [other for other in chosen if other is not vm]
        if not any(lacks(rest, pools, need) for pools, need in needs):
            chosen = rest
    return chosen
