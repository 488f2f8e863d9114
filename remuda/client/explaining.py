"""Why a job is where it is, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remuda.client.fitting import never_fits
from remuda.client.results import ending


def explain_job(facts: Mapping[str, Any]) -> list[str]:
    """Return sentences from `remuda.models.explanation.explain_facts`."""
    job, pool = facts["job"], facts["pool"]
    state = job["state"]
    if state == "TERMINATED":
        tries = f"after {job['epoch']} attempts" if job["epoch"] > 1 else ""
        return [f"It has ended: it {ending(job)} {tries}".strip() + "."]
    said = []
    if job["cancel_requested_at"] is not None:
        said.append("It is being cancelled.")
    if state == "SUBMITTED":
        said.append(f"It is on VM {job['vm']} and starts as soon as its slots are free there.")
    elif state == "RUNNING":
        said.append(f"It runs on VM {job['vm']} since {job['started_at']:%Y-%m-%d %H:%M:%S %Z}.")
    elif state == "TERMINATING":
        said.append(f"Its command has ended; its outputs are fetched from VM {job['vm']}.")
    elif state in ("STOPPED", "UNKNOWN"):
        said.append(f"It is {state} on VM {job['vm']}.")
    else:
        said += _waiting(facts)
    if job["failures"] or job["losses"]:
        said.append(
            f"{job['failures']} of its attempts failed, {job['losses']} were lost with their VM; "
            f"it may fail {job['max_attempts']} times."
        )
    if state == "NEW" and pool["message"]:
        said.append(f"The pool says: {pool['message']}")
    return said


def _waiting(facts: Mapping[str, Any]) -> list[str]:
    """Tell what it waits for: itself first, then each pool it may go to."""
    job = facts["job"]
    said = []
    if job["unmet"]:
        said += _dependencies(facts)
    if job["held"]:
        said.append("It is held: it was suspended before it was placed; `resume` lets it go on.")
    if facts["budget_stop"]:
        said.append(f"Nothing of its owner is placed: {facts['budget_stop']}.")
    if facts["waits_s"]:
        said.append(f"Its next attempt is due in {facts['waits_s']:.0f} s.")
    array = facts["array"]
    if array is not None and array["live"] >= array["max_running"]:
        said.append(
            f"Array {job['array_id']} has {array['live']} jobs on machines, as many as it may "
            f"(max_running {array['max_running']}); it waits for one of them to end."
        )
    if facts["deadline_s"] is not None:
        left = facts["deadline_s"]
        said.append(
            f"It is ended (QUEUE_TIMEOUT) unless it starts in {max(0, left):.0f} s (max_queue_s)."
        )
    pools = facts["pools"]
    if len(pools) > 1:
        names = ", ".join(pool["pool"]["name"] for pool in pools)
        said.append(f"It goes to the first of {names} that has room for it.")
    for pool in pools:
        said += _in_pool(job, pool)
    return said


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


def _in_pool(job: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    pool = facts["pool"]
    name, state = pool["name"], pool["state"]
    if state == "UNSUBMITTED":
        return [f"It waits: pool {name} is not submitted yet."]
    if state in ("CLOSING", "CLOSED", "PENDING_DELETE"):
        return [f"Pool {name} is {state}; the job will be cancelled."]
    if pool["budget_stop"]:
        return [f"Pool {name} places and launches nothing: {pool['budget_stop']}."]
    limit = never_fits(
        job,
        pool,
        memory_bytes=facts.get("memory_bytes"),
        kinds=facts["kinds"],
        here=facts.get("here"),
    )
    if limit is not None:
        return [f"It can never run as things are: {limit}."]
    said = []
    if not job["unmet"] and not job["held"]:
        before = facts["queue_before"]
        ahead = (
            f"{_count(before, 'job')} of pool {name} {'goes' if before == 1 else 'go'} before it"
        )
        said.append(f"It waits; {ahead}.")
    vms = ", ".join(f"{count} {state}" for state, count in facts["vms"].items()) or "none"
    said.append(
        f"It needs {_count(job['cores'], 'slot')} on one VM; the freest has {facts['most_free_slots']}. "
        f"VMs of the pool: {vms}."
    )
    if facts["foreign"]:
        said.append(
            f"{_count(facts['foreign'], 'VM')} of pool {name} bound to others (isolation "
            f"{pool['isolation']}) will never take it."
        )
    if job["gpus"]:
        said.append(
            f"It needs {_count(job['gpus'], 'free GPU')} there; {facts['most_free_gpus']} are free."
        )
    said += [f"VM {vm} is not for it: {'; '.join(lacks)}." for vm, lacks in facts["lacks"]]
    if facts["paused_s"]:
        said.append(f"Launches failed; the pool tries again in {facts['paused_s']:.0f} s.")
    elif state == "FAILURE":
        said.append("Launches keep failing; the pool tries again.")
    decision = pool["decision"]
    if decision:
        said.append(f"The pool's last decision: {decision['reason']}")
    return said


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
