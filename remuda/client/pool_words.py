"""Why a pool has the size it has, what it waits for and what it will do next, in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from remuda.policies import Policy, next_change, policy_at
from remuda.policy_rows import DAYS, policies_of


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def explain_pool(pool: Mapping[str, Any]) -> list[str]:
    """Return sentences about a row of `remuda.models.query.pools`."""
    state = pool["state"]
    said = [
        f"It is {state}, with {_count(pool['vms'], 'VM')} ({_count(pool['slots'], 'slot')} ready, "
        f"{pool['busy_slots']} busy); {_count(pool['waiting_jobs'], 'job')} "
        f"wait{'s' * (pool['waiting_jobs'] == 1)}, {pool['live_jobs']} "
        f"{'is' if pool['live_jobs'] == 1 else 'are'} on the way."
    ]
    if state == "UNSUBMITTED":
        said.append("It takes jobs, but makes no VM before it is submitted.")
    else:
        said += _rules(pool)
    kind = pool.get("scheduling_type")
    if kind == "flex":
        said.append("It is flex: its VMs make room where others' work needs their place.")
    elif kind == "reserved":
        said.append(
            f"It is reserved: it has the hosts of group {pool['reserved_group']} for itself."
        )
    said += _decision(pool["decision"])
    if pool.get("short_slots"):
        said.append(
            f"Its work needs {_count(pool['short_slots'], 'slot')} that only others keep from it, "
            f"since {_time(pool['short_since'])}: flex pools make room as far as they can."
        )
    if pool.get("offers"):
        names = ", ".join(offer["name"] for offer in pool["offers"])
        how = {
            "cheapest": "the cheapest",
            "deadline": "the cheapest (a dearer one only if a job's max_queue_s asks for it)",
        }.get(pool.get("offer_order") or "", "the first")
        said.append(f"VMs are made from {how} offer that has any: {names}.")
    for refusal in pool.get("refusals") or ():
        which = f"Offer {refusal['offer']}" if refusal["offer"] else "The provider"
        said.append(f"{which} is not asked until {refusal['expires_at']}: {refusal['reason']}")
    if pool.get("budget_stop"):
        said.append(f"Nothing is placed or launched: {pool['budget_stop']}.")
    said += [f"Of one owner nothing is placed: {why}." for why in pool.get("owner_stops") or ()]
    if pool.get("frozen_reason"):
        said.append(f"It is frozen: {pool['frozen_reason']}")
    if pool["launch_failures"]:
        since = f", since {_time(pool['paused_at'])}" if pool.get("paused_at") else ""
        count = pool["launch_failures"]
        what = "1 launch failed" if count == 1 else f"{count} launches failed in a row"
        said.append(f"{what}{since}: {pool['message']}")
    elif pool.get("paused_until") is not None and pool["message"]:
        since = f" since {_time(pool['paused_at'])}," if pool.get("paused_at") else ""
        said.append(f"No VM is asked for{since} until {pool['paused_until']}: {pool['message']}")
    return said


def describe_policy(policy: Policy) -> str:
    """Return what a policy says and when it is active, in a line."""
    size = policy.size
    if policy.kind == "fixed":
        what = _count(size.maximum_total_slots, "slot")
    else:
        what = (
            f"{size.minimum_total_slots} to {size.maximum_total_slots} slots by demand, "
            f"{size.minimum_idle_slots} kept free, a VM goes after "
            f"{size.minimum_idle_time_seconds:g} s idle; sized every {size.resize_period:g} s, "
            f"growing by at most {size.resize_factor:g} of the maximum"
        )
    if not policy.periods:
        return f"{what}, always"
    times = ", ".join(
        f"{_days(period.days)} {_clock(period.from_min)}-{_clock(period.to_min)}"
        for period in policy.periods
    )
    return f"{what}, {times} ({policy.time_zone})"


def _rules(pool: Mapping[str, Any]) -> list[str]:
    own = _own(pool)
    if not pool.get("policies"):
        return [own]
    policies = policies_of(pool["policies"])
    now = datetime.now(UTC)
    ruling = policy_at(policies, now)
    if ruling is None:
        number = len(policies)
        which = "Its policy is not" if number == 1 else f"None of its {number} policies is"
        said = [f"{which} active, so its own size rules. {own}"]
    else:
        said = [f"Policy {ruling.name} rules ({ruling.kind}): {describe_policy(ruling)}."]
    change = next_change(policies, now)
    if change is not None:
        then = "its own size" if change[1] is None else f"policy {change[1].name}"
        said.append(f"From {_time(change[0])} on {then} rules.")
    return said


def _own(pool: Mapping[str, Any]) -> str:
    if not pool["is_elastic"]:
        vms, slots = _count(pool["instance_count"], "VM"), _count(pool["slots_per_vm"], "slot")
        return f"Static: {vms} of {slots}."
    return (
        f"Elastic: {pool['elastic_minimum_slots']} to {pool['elastic_maximum_slots']} slots, "
        f"{pool['elastic_minimum_idle_slots']} kept free, a VM goes after "
        f"{pool['elastic_minimum_idle_time_s']:g} s idle; sized every "
        f"{pool['elastic_resize_period_s']:g} s, growing by at most "
        f"{pool['elastic_resize_factor']:g} of the maximum."
    )


def _decision(decision: Mapping[str, Any] | None) -> list[str]:
    if not decision:
        return ["Its size has not been decided yet."]
    said = [f"Last decision ({decision.get('at', 'unknown time')}): {decision['reason']}."]
    outlook = decision.get("outlook") or {}
    if outlook.get("waits_for"):
        said.append(f"It waits for {', '.join(outlook['waits_for'])}.")
    if outlook.get("next_step"):
        at = outlook.get("next_at")
        when = f", at {_time(datetime.fromisoformat(at))}" if at else ""
        said.append(f"Next: {outlook['next_step']}{when}.")
    inputs = decision.get("inputs") or {}
    if inputs:
        said.append("From: " + ", ".join(f"{k}={v}" for k, v in inputs.items()))
    return said


def _days(days: tuple[int, ...]) -> str:
    if days == tuple(range(7)):
        return "daily"
    if len(days) > 2 and days == tuple(range(days[0], days[-1] + 1)):
        return f"{DAYS[days[0]][:3]}-{DAYS[days[-1]][:3]}"
    return ",".join(DAYS[day][:3] for day in days)


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
