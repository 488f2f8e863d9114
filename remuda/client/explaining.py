"""Why a job is where it is, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remuda.client.estimating import estimate
from remuda.client.reasons import Reason, waiting_reasons
from remuda.client.results import ending

# In the order in which they are told: what holds a job up for longest first.
KINDS = (
    "state",
    "never",
    "pool",
    "dependency",
    "held",
    "budget",
    "quota",
    "array_limit",
    "retry",
    "paused",
    "room",
    "fair_share",
    "queue",
    "booting",
    "requirement",
    "deadline",
    "sizing",
    "history",
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job is where it is, the strongest reason first, and when a waiting one may start."""

    reasons: tuple[Reason, ...]
    start_s: float | None = None
    basis: str = ""

    def sentences(self) -> list[str]:
        """Return all of it in sentences."""
        said = [reason.text for reason in self.reasons]
        if self.start_s is not None:
            return [*said, f"It may start in {_time(self.start_s)}: {self.basis}."]
        return [*said, f"When it starts is not known: {self.basis}."] if self.basis else said


def explain_job(facts: Mapping[str, Any]) -> Explanation:
    """Return reasons and an estimate from `remuda.models.explanation.explain_facts`."""
    job, pool = facts["job"], facts["pool"]
    state = job["state"]
    if state == "TERMINATED":
        tries = f"after {job['epoch']} attempts" if job["epoch"] > 1 else ""
        return Explanation(
            (Reason("state", f"It has ended: it {ending(job)} {tries}".strip() + "."),)
        )
    found = []
    if job["cancel_requested_at"] is not None:
        found.append(Reason("state", "It is being cancelled."))
    if state == "SUBMITTED":
        text = f"It is on VM {job['vm']} and starts as soon as its slots are free there."
        found.append(Reason("state", text))
    elif state == "RUNNING":
        text = f"It runs on VM {job['vm']} since {job['started_at']:%Y-%m-%d %H:%M:%S %Z}."
        found.append(Reason("state", text))
    elif state == "TERMINATING":
        text = f"Its command has ended; its outputs are fetched from VM {job['vm']}."
        found.append(Reason("state", text))
    elif state in ("STOPPED", "UNKNOWN"):
        found.append(Reason("state", f"It is {state} on VM {job['vm']}."))
    else:
        found += waiting_reasons(facts)
    if job["failures"] or job["losses"]:
        text = (
            f"{job['failures']} of its attempts failed, {job['losses']} were lost with their VM; "
            f"it may fail {job['max_attempts']} times."
        )
        found.append(Reason("history", text))
    past = facts["preempted"]
    if past["count"]:
        times = "once" if past["count"] == 1 else f"{past['count']} times"
        text = (
            f"It was preempted {times}, last at {past['at']:%Y-%m-%d %H:%M:%S %Z} ({past['why']}); "
            "that counts neither as a failure nor as a loss."
        )
        found.append(Reason("history", text))
    # That of a pause is told with it, of one pool among several too.
    if state == "NEW" and pool["message"] and not any(r.kind == "paused" for r in found):
        found.append(Reason("paused", f"The pool says: {pool['message']}"))
    ranked = tuple(sorted(found, key=lambda reason: KINDS.index(reason.kind)))
    if state != "NEW":
        return Explanation(ranked)
    blocked = next((reason.text.rstrip(".") for reason in ranked if reason.blocks), None)
    when = estimate(facts, blocked)
    return Explanation(ranked, when.start_s, when.basis)


def _time(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} s"
