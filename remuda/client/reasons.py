"""Why a job waits, reason by reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from remuda.client.fitting import never_fits


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job is where it is: its `kind`, one of KINDS, and a sentence.

    `blocks`: it cannot start before that changes, and nobody can know when it will.
    """

    kind: str
    text: str
    blocks: bool = False


def waiting_reasons(facts: Mapping[str, Any]) -> list[Reason]:
    """Return what a NEW job waits for: for itself, and in each pool it may go to."""
    job = facts["job"]
    found = []
    if job["unmet"]:
        found += [Reason("dependency", text, blocks=True) for text in _dependencies(facts)]
    if job["held"]:
        text = "It is held: it was suspended before it was placed; `resume` lets it go on."
        found.append(Reason("held", text, blocks=True))
    if facts["budget_stop"]:
        text = f"Nothing of its owner is placed: {facts['budget_stop']}."
        found.append(Reason("budget", text, blocks=True))
    if facts["waits_s"] and not job["epoch"]:
        text = f"It is put off to a better hour (deferrable), in {facts['waits_s']:.0f} s."
        found.append(Reason("retry", text))
    elif facts["waits_s"]:
        found.append(Reason("retry", f"Its next attempt is due in {facts['waits_s']:.0f} s."))
    array = facts["array"]
    if array is not None and array["live"] >= array["max_running"]:
        text = (
            f"Array {job['array_id']} has {array['live']} jobs on machines, as many as it may "
            f"(max_running {array['max_running']}); it waits for one of them to end."
        )
        found.append(Reason("array_limit", text, blocks=True))
    found += [_quota(job, quota) for quota in facts["quotas"]]
    found += [_vm_limit(limit) for limit in facts["vm_limits"]]
    if facts["deadline_s"] is not None:
        left = max(0, facts["deadline_s"])
        text = f"It is ended (QUEUE_TIMEOUT) unless it starts in {left:.0f} s (max_queue_s)."
        found.append(Reason("deadline", text))
    pools = facts["pools"]
    if len(pools) > 1:
        names = ", ".join(pool["pool"]["name"] for pool in pools)
        found.append(Reason("room", f"It goes to the first of {names} that has room for it."))
    each = [_in_pool(job, pool) for pool in pools]
    # What holds it up in one pool leaves it the others.
    open_to_it = any(not any(reason.blocks for reason in reasons) for reasons in each)
    return found + [
        replace(reason, blocks=False) if open_to_it else reason
        for reasons in each
        for reason in reasons
    ]


def _quota(job: Mapping[str, Any], quota: Mapping[str, Any]) -> Reason:
    where = f" in pool {quota['pool']}" if quota["pool"] else ""
    whose = "" if quota["owner_id"] == job["owner_id"] else ", its owner's group,"
    text = (
        f"Owner {quota['name']}{whose} may have {_count(quota['max_slots'], 'slot')}{where} (max_slots) "
        f"and has all but {quota['left']} of them; the job needs {job['cores']}."
    )
    return Reason("quota", text, blocks=True)


def _vm_limit(limit: Mapping[str, Any]) -> Reason:
    where = f" of pool {limit['pool']}" if limit["pool"] else ""
    whose = ", its owner's group," if limit["is_group"] else ""
    text = (
        f"Owner {limit['name']}{whose} has as many VMs{where} as it may ({limit['word']} {limit['most']}); "
        "the job waits for room on those, or for one of them to end."
    )
    return Reason("quota", text, blocks=True)


def _dependencies(facts: Mapping[str, Any]) -> list[str]:
    how = {"success": "succeed", "failure": "fail", "end": "end"}
    said = []
    for parent in facts["parents"]:
        if parent["parent_id"] is not None:
            name = f" {parent['name']!r}" if parent["name"] else ""
            who = f"job {parent['parent_id']}{name}, which is {parent['state']}"
        else:
            which = "all jobs" if parent["quantifier"] == "all" else "any job"
            who = (
                f"{which} of array {parent['parent_array_id']}, of which "
                f"{parent['ended']} of {parent['size']} have ended"
            )
        said.append(f"It waits for {who}, to {how[parent['condition']]}.")
    more = facts["job"]["unmet"] - len(said)
    return said + ([f"It waits for {more} more."] if more > 0 and said else [])


def _in_pool(job: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Reason]:
    pool = facts["pool"]
    name, state = pool["name"], pool["state"]
    if state == "UNSUBMITTED":
        return [Reason("pool", f"It waits: pool {name} is not submitted yet.", blocks=True)]
    if state in ("CLOSING", "CLOSED", "PENDING_DELETE"):
        return [Reason("pool", f"Pool {name} is {state}; the job will be cancelled.", blocks=True)]
    if pool["budget_stop"]:
        text = f"Pool {name} places and launches nothing: {pool['budget_stop']}."
        return [Reason("budget", text, blocks=True)]
    if facts["owner_stop"]:
        text = f"Nothing of its owner is placed in pool {name}: {facts['owner_stop']}."
        return [Reason("budget", text, blocks=True)]
    limit = never_fits(
        job,
        pool,
        memory_bytes=facts.get("memory_bytes"),
        kinds=facts["kinds"],
        here=facts.get("here"),
    )
    if limit is not None:
        return [Reason("never", f"It can never run as things are: {limit}.", blocks=True)]
    found = [*_in_line(job, facts), *_room(job, facts)]
    if facts["paused_s"] or state == "FAILURE":
        found.append(Reason("paused", _pause(pool, facts["paused_s"])))
    if pool["frozen_at"] is not None:
        text = (
            f"Pool {name} is frozen since {pool['frozen_at']:%Y-%m-%d %H:%M:%S %Z}: "
            f"{pool['frozen_reason']}."
        )
        found.append(Reason("paused", text))
    if pool["decision"]:
        found.append(Reason("sizing", f"The pool's last decision: {pool['decision']['reason']}"))
    return found


def _pause(pool: Mapping[str, Any], left_s: float | None) -> str:
    """Say since when a pool asks for no VMs, why, and when it does again."""
    since = pool["paused_at"] or pool["state_changed_at"]
    failed = pool["launch_failures"]
    text = f"Pool {pool['name']} asks for no VM since {since:%Y-%m-%d %H:%M:%S %Z}"
    if failed:
        text += f", after {'a failed launch' if failed == 1 else f'{failed} failed launches'}"
    text += f": {pool['message'].rstrip('.')}" if pool["message"] else ""
    return (
        f"{text}; it tries again in {left_s:.0f} s." if left_s else f"{text}; it tries again now."
    )


def _in_line(job: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Reason]:
    """Return what goes before it in a pool, by priority, age and fair share."""
    if job["unmet"] or job["held"]:
        return []
    line, name = facts["line"], facts["pool"]["name"]
    before = sum(row["jobs"] for row in (*line["higher"], *line["own"]))
    goes = "goes" if before == 1 else "go"
    found = [Reason("queue", f"It waits; {_count(before, 'job')} of pool {name} {goes} before it.")]
    first = [row for row in line["others"] if row["level"] < line["level"]]
    if first:
        names = ", ".join(row["name"] for row in sorted(first, key=lambda row: row["level"])[:5])
        more = f" and {len(first) - 5} more" if len(first) > 5 else ""
        text = (
            f"By fair share {names}{more} {'comes' if len(first) == 1 else 'come'} first in pool "
            f"{name}: less was used for a weight of 1 than owner {job['owner']}'s "
            f"{line['level'] / 3600:.2f} slot-hours ({line['used_slot_s'] / 3600:.2f}, weight "
            f"{line['weight']:g})."
        )
        found.append(Reason("fair_share", text))
    if line["booting"]:
        usual = "" if line["boot_s"] is None else f"; they took {line['boot_s']:.0f} s lately"
        text = (
            f"{_count(line['booting'], 'VM')} of pool {name} {'is' if line['booting'] == 1 else 'are'} "
            f"booting, the first since {line['booting_s']:.0f} s{usual}."
        )
        found.append(Reason("booting", text))
    return found


def _room(job: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Reason]:
    """Return by how much the VMs of a pool have too little for it now."""
    pool = facts["pool"]
    vms = ", ".join(f"{count} {state}" for state, count in facts["vms"].items()) or "none"
    lacks = max(0, job["cores"] - facts["most_free_slots"])
    few = f", {lacks} too few" if lacks else ""
    found = [
        Reason(
            "room",
            f"It needs {_count(job['cores'], 'slot')} on one VM; the freest has "
            f"{facts['most_free_slots']}{few}. VMs of the pool: {vms}.",
        )
    ]
    if facts["foreign"]:
        text = (
            f"{_count(facts['foreign'], 'VM')} of pool {pool['name']} bound to others (isolation "
            f"{pool['isolation']}) will never take it."
        )
        found.append(Reason("room", text))
    if facts["kept"]:
        text = (
            f"{_count(facts['kept'], 'VM')} of pool {pool['name']} kept for a lease that has waited "
            "for long (`remuda lease waiting`) takes no jobs."
        )
        found.append(Reason("room", text))
    if job["gpus"]:
        text = (
            f"It needs {_count(job['gpus'], 'free GPU')} there; {facts['most_free_gpus']} are free."
        )
        found.append(Reason("room", text))
    return found + [
        Reason("requirement", f"VM {vm} is not for it: {'; '.join(lacks)}.")
        for vm, lacks in facts["lacks"]
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
