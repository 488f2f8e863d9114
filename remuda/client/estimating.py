"""When a waiting job is expected to start, from what is known now; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Estimate:
    """In how many seconds a job is expected to start, and how that was estimated; None: unknown."""

    start_s: float | None
    basis: str


def estimate(facts: Mapping[str, Any], blocked: str | None) -> Estimate:
    """Return when the job will start, from `explain_facts`; the soonest of its pools counts.

    `blocked`: what holds it up for a time that nobody can know.
    """
    if blocked is not None:
        return Estimate(None, blocked)
    # Where a budget is used up nothing starts, whatever room there is.
    found = [
        _in_pool(facts["job"], pool)
        for pool in facts["pools"]
        if not (pool["pool"]["budget_stop"] or pool["owner_stop"])
    ]
    known = [one for one in found if one.start_s is not None]
    if not known:
        return found[0] if found else Estimate(None, "it has no pool")
    soonest = min(known, key=lambda one: one.start_s or 0.0)
    pause_s = facts["waits_s"] or 0.0
    if pause_s > (soonest.start_s or 0.0):
        return Estimate(pause_s, "its next attempt is due then")
    return soonest


def _in_pool(job: Mapping[str, Any], facts: Mapping[str, Any]) -> Estimate:
    name, line = facts["pool"]["name"], facts["line"]
    before = [*line["higher"], *line["own"]]
    # Beside each job of its own line the others' jobs get theirs, by their weights, as far as they
    # have any; those that used less for their weight first catch up.
    slot_s = sum(row["slot_s"] for row in before)
    unknown = sum(row["unknown"] for row in before)
    own_s = sum(row["slot_s"] for row in line["own"])
    for other in line["others"]:
        behind_s = max(0.0, line["level"] - other["level"]) * other["weight"]
        part_s = behind_s + own_s * other["weight"] / line["weight"]
        slot_s += min(other["slot_s"], part_s)
        unknown += other["unknown"] if other["level"] < line["level"] else 0
    jobs = sum(row["jobs"] for row in before)
    if not jobs and not slot_s and not unknown and facts["most_free_slots"] >= job["cores"]:
        return Estimate(0.0, f"a VM of pool {name} has room, and nothing comes before it")
    boot_s = 0.0
    slots = line["slots"]
    if not slots:
        if not line["booting"]:
            return Estimate(None, f"pool {name} has no VM that takes jobs, and none is booting")
        if line["boot_s"] is None:
            return Estimate(None, f"no VM of pool {name} has ever booted, so nobody knows how long")
        boot_s = max(0.0, line["boot_s"] - line["booting_s"])
        slots = line["booting"] * facts["pool"]["slots_per_vm"]
    if unknown or (line["unknown"] and facts["most_free_slots"] < job["cores"]):
        return Estimate(
            None, "nobody knows how long the jobs before it take: none of theirs has ended"
        )
    start_s = boot_s + (slot_s + line["left_slot_s"]) / slots
    basis = (
        f"{slots} slots of pool {name} have {line['left_slot_s']:.0f} slot-seconds left to run and "
        f"{slot_s:.0f} waiting before it, by the mean times of their arrays and owners and by "
        "fair share"
    )
    if boot_s:
        basis += f"; its VMs took {line['boot_s']:.0f} s to boot lately"
    return Estimate(start_s, basis)
