"""What `remuda top` shows of pools, VMs and jobs: the columns of each, and the line above them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from remuda.cli.output import Column, Row, count, elapsed, format_duration, print_rows
from remuda.client.overview import Overview

_POOL_KEYS = ("id", "name", "state", "provider", "vms", "slots", "busy_slots", "waiting_jobs")
_KEYS = ("id", "name", "pool", "owner", "state", "reason", "exit_code", "vm", "epoch", "cores")
_TIMES = ("submitted_at", "started_at", "ended_at")


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its name, columns, and how its rows are found in an overview."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Callable[[Overview], list[Row]]

    def print(self, seen: Overview) -> None:
        """Print it as commands print their lists."""
        print_rows(self.columns, self.rows(seen), as_json=False)


def headline(seen: Overview) -> str:
    """Return the line that sums all up."""
    running = [vm for vm in seen.vms if vm.state == "RUNNING"]
    slots = sum(vm.slots for vm in running)
    busy = sum(vm.busy_slots + vm.leased_slots for vm in running)
    waiting = sum(pool["waiting_jobs"] for pool in seen.pools)
    live = sum(pool["live_jobs"] for pool in seen.pools)
    return (
        f"{seen.at:%H:%M:%SZ}  {count(len(seen.pools), 'pool')}  {count(len(seen.vms), 'VM')}, "
        f"{len(running)} running  {busy} of {count(slots, 'slot')} busy  "
        f"{count(waiting, 'job')} waiting, {live} on machines  {seen.ended_per_s:.1f} ended/s"
    )


def record(seen: Overview) -> dict[str, Any]:
    """Return the overview for `--json`."""
    return {
        "at": seen.at,
        "ended_per_s": seen.ended_per_s,
        "pools": [{key: row[key] for key in (*_POOL_KEYS, "live_jobs")} for row in seen.pools],
        "vms": [asdict(vm) for vm in seen.vms],
        "jobs": [{key: row[key] for key in (*_KEYS, *_TIMES)} for row in seen.jobs],
    }


def _size(row: Row) -> str:
    if row["is_elastic"]:
        return f"{row['elastic_minimum_slots']}..{row['elastic_maximum_slots']} slots"
    return count(row["instance_count"], "VM")


def _result(row: Row) -> str:
    """Return how a job ended in a word, with the number that says more."""
    number = {"NONZERO": row["exit_code"], "SIGNALLED": row["signal"]}.get(row["reason"])
    return " ".join(str(part) for part in (row["reason"], number) if part is not None)


def _waited(row: Row) -> str:
    """Return how long a job waited, or waits, for its start."""
    started_or_ended = row["started_at"] or row["ended_at"]
    return format_duration(elapsed(row["submitted_at"], started_or_ended))


_POOLS = (
    Column("NAME", "name"),
    Column("STATE", "state"),
    Column("SIZE", _size),
    Column("VMS", "vms", right=True),
    Column("SLOTS", "slots", right=True),
    Column("BUSY", "busy_slots", right=True),
    Column("WAITING", "waiting_jobs", right=True),
    Column("LIVE", "live_jobs", right=True),
    Column("PROVIDER", "provider"),
    Column("MESSAGE", "message"),
)
_VMS = (
    Column("ID", "id", right=True),
    Column("NAME", "name"),
    Column("POOL", "pool"),
    Column("STATE", lambda row: row["state"] + (" draining" if row["draining"] else "")),
    Column("SLOTS", "slots", right=True),
    Column("BUSY", lambda row: row["busy_slots"] + row["leased_slots"], right=True),
    Column("JOBS", "jobs", right=True),
    Column("LOAD", lambda row: "" if row["load"] is None else f"{row['load']:.2f}", right=True),
    Column("SEEN", lambda row: format_duration(row["heartbeat_age_s"]), right=True),
    Column("ERROR", "error"),
)
_JOBS = (
    Column("ID", "id", right=True),
    Column("NAME", "name"),
    Column("POOL", "pool"),
    Column("OWNER", "owner"),
    Column("STATE", "state"),
    Column("RESULT", _result),
    Column("TRY", lambda row: row["epoch"] or None, right=True),
    Column("VM", "vm"),
    Column("WAITED", _waited, right=True),
    Column(
        "RAN", lambda row: format_duration(elapsed(row["started_at"], row["ended_at"])), right=True
    ),
)

TABLES = (
    Table("pools", "Pools", _POOLS, lambda seen: list(seen.pools)),
    Table("vms", "VMs", _VMS, lambda seen: [asdict(vm) for vm in seen.vms]),
    Table("jobs", "Jobs", _JOBS, lambda seen: list(seen.jobs)),
)
