"""Why a job is where it is, and why a pool has the size it has, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remuda.client.results import ending


def explain_job(facts: Mapping[str, Any]) -> list[str]:
    """Return sentences from `remuda.models.query.explain_facts`."""
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


def never_fits(
    job: Mapping[str, Any], pool: Mapping[str, Any], *, memory_bytes: int | None
) -> str | None:
    """Return which limit of the pool the job can never meet; None if it fits.

    `memory_bytes`: what a VM has when the pool doesn't say.
    """
    cores, memory = job["cores"], job["memory_bytes"]
    name, slots = pool["name"], pool["slots_per_vm"]
    if cores > slots:
        return f"it asks for {cores} cores, a VM of pool {name} has {slots} (slots_per_vm)"
    limit = pool["memory_bytes_per_vm"] or memory_bytes
    if memory is not None and limit is not None and memory > limit:
        return (
            f"it asks for {memory} bytes of memory, a VM of pool {name} has {limit} "
            "(memory_bytes_per_vm)"
        )
    if pool["is_elastic"]:
        most, which = pool["elastic_maximum_slots"], "maximum_total_slots"
    else:
        most, which = pool["instance_count"] * slots, "instance_count"
    if cores > most:
        return f"it asks for {cores} cores, pool {name} may have at most {most} slots ({which})"
    return None


def explain_pool(pool: Mapping[str, Any]) -> list[str]:
    """Return sentences about a row of `remuda.models.query.pools`."""
    state = pool["state"]
    said = [
        f"It is {state}, with {pool['vms']} VMs ({pool['slots']} slots ready, "
        f"{pool['busy_slots']} busy); {pool['waiting_jobs']} jobs wait, {pool['live_jobs']} are on "
        "their way."
    ]
    if state == "UNSUBMITTED":
        said.append("It takes jobs, but makes no VM before it is submitted.")
    elif pool["is_elastic"]:
        said.append(
            f"Elastic: {pool['elastic_minimum_slots']} to {pool['elastic_maximum_slots']} slots, "
            f"{pool['elastic_minimum_idle_slots']} kept free, a VM goes after "
            f"{pool['elastic_minimum_idle_time_s']:g} s idle; sized every "
            f"{pool['elastic_resize_period_s']:g} s, growing by at most "
            f"{pool['elastic_resize_factor']:g} of the maximum."
        )
    else:
        said.append(f"Static: {pool['instance_count']} VMs of {pool['slots_per_vm']} slots.")
    decision = pool["decision"]
    if decision:
        said.append(f"Last decision ({decision.get('at', 'unknown time')}): {decision['reason']}")
        inputs = decision.get("inputs") or {}
        if inputs:
            said.append("From: " + ", ".join(f"{k}={v}" for k, v in inputs.items()))
    if pool["launch_failures"]:
        said.append(f"{pool['launch_failures']} launches failed in a row: {pool['message']}")
    return said


def _waiting(facts: Mapping[str, Any]) -> list[str]:
    job, pool = facts["job"], facts["pool"]
    name, state = pool["name"], pool["state"]
    if state == "UNSUBMITTED":
        return [f"It waits: pool {name} is not submitted yet."]
    if state in ("CLOSING", "CLOSED", "PENDING_DELETE"):
        return [f"Pool {name} is {state}; the job will be cancelled."]
    limit = never_fits(job, pool, memory_bytes=facts.get("memory_bytes"))
    if limit is not None:
        return [f"It can never run as things are: {limit}."]
    said = [f"It waits; {facts['queue_before']} jobs of pool {name} go before it."]
    if facts["waits_s"]:
        said.append(f"Its next attempt is due in {facts['waits_s']:.0f} s.")
    vms = ", ".join(f"{count} {state}" for state, count in facts["vms"].items()) or "none"
    said.append(
        f"It needs {job['cores']} slots on one VM; the freest has {facts['most_free_slots']}. "
        f"VMs of the pool: {vms}."
    )
    if facts["paused_s"]:
        said.append(f"Launches failed; the pool tries again in {facts['paused_s']:.0f} s.")
    elif state == "FAILURE":
        said.append("Launches keep failing; the pool tries again.")
    decision = pool["decision"]
    if decision:
        said.append(f"The pool's last decision: {decision['reason']}")
    return said
