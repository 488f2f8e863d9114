"""Rows of the database as Prometheus' metric families. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from remuda.models.measuring import Measures

OTHER = "other"
BOOT_S = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
AGE_S = (1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)


class Labels:
    """Names by id; those beyond a number share the name "other", so that series stay few."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """Use these names, and no others."""
        self._names = names

    def __getitem__(self, key: int | None) -> str:
        return OTHER if key is None else self._names.get(key, OTHER)


def families(measures: Measures, *, most_owners: int) -> Iterator[Metric]:
    """Yield what these measures say."""
    pools = Labels({row["id"]: row["name"] for row in measures.pools})
    yield from _jobs(measures, pools, _owner_labels(measures, most_owners))
    yield from _vms(measures, pools)
    yield from _leases(measures, pools)
    yield from _unowned(measures, pools)
    yield from _budgets(measures)
    yield from _counters(measures, pools)
    yield _boots(measures, pools)
    yield from _health(measures)


def _owner_labels(measures: Measures, most: int) -> Labels:
    busy: Counter[int] = Counter()
    for row in measures.jobs:
        busy[row["owner_id"]] += row["count"]
    kept = sorted(busy, key=lambda owner: (-busy[owner], owner))[:most]
    return Labels({owner: measures.owners.get(owner, OTHER) for owner in kept})


def _gauge(
    name: str, help_: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = GaugeMetricFamily(name, help_, labels=labels)
    for key in sorted(values):
        family.add_metric(key, values[key])
    return family


def _counter(
    name: str, help_: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = CounterMetricFamily(name, help_, labels=labels)
    for key in sorted(values):
        family.add_metric(key, values[key])
    return family


def _sum(pairs: Iterable[tuple[tuple[str, ...], float]]) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for key, value in pairs:
        found[key] += value
    return found


def _most(pairs: Iterable[tuple[tuple[str, ...], float]]) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for key, value in pairs:
        found[key] = max(found.get(key, value), value)
    return found


def _jobs(measures: Measures, pools: Labels, owners: Labels) -> Iterator[Metric]:
    waiting = [row for row in measures.jobs if row["state"] == "waiting"]
    both = ("pool", "owner")
    yield _gauge(
        "remuda_queue_jobs",
        "Jobs that wait for a place and could take one.",
        both,
        _sum(((pools[r["pool_id"]], owners[r["owner_id"]]), r["count"]) for r in waiting),
    )
    yield _gauge(
        "remuda_queue_slots",
        "Slots that the jobs waiting for a place ask for.",
        both,
        _sum(((pools[r["pool_id"]], owners[r["owner_id"]]), r["cores"]) for r in waiting),
    )
    yield _gauge(
        "remuda_queue_oldest_age_seconds",
        "How long ago the oldest job that waits for a place was submitted.",
        both,
        _most(((pools[r["pool_id"]], owners[r["owner_id"]]), r["oldest_s"]) for r in waiting),
    )
    yield _gauge(
        "remuda_jobs",
        "Jobs that have not ended, by state; NEW ones are waiting, blocked, held or delayed.",
        ("pool", "state"),
        _sum(((pools[r["pool_id"]], r["state"]), r["count"]) for r in measures.jobs),
    )


def _budgets(measures: Measures) -> Iterator[Metric]:
    labels = ("of", "name", "pool")  # the last of an owner in a pool alone
    whose = [
        (
            ("pool", row["pool"], "")
            if row["owner"] is None
            else ("owner", row["owner"], row["pool"] or ""),
            row,
        )
        for row in measures.budgets
    ]
    yield _gauge(
        "remuda_budget_spent",
        "What was spent of a budget in its present period, in price units.",
        labels,
        {key: row["spent"] for key, row in whose},
    )
    for level, what in (
        ("warn", "From when on a budget is told to be nearly used up."),
        ("stop", "From when on nothing is placed or launched any more."),
    ):
        yield _gauge(
            f"remuda_budget_{level}",
            what,
            labels,
            {key: row[level] for key, row in whose if row[level] is not None},
        )


def _vms(measures: Measures, pools: Labels) -> Iterator[Metric]:
    running = [row for row in measures.vms if row["state"] == "running"]
    yield _gauge(
        "remuda_vms",
        "VMs that are not confirmed gone, by state.",
        ("pool", "state"),
        _sum(((pools[row["pool_id"]], row["state"]), 1) for row in measures.vms),
    )
    yield _gauge(
        "remuda_vms_draining",
        "Running VMs that take no more work.",
        ("pool",),
        _sum(((pools[row["pool_id"]],), bool(row["draining"])) for row in running),
    )
    yield _gauge(
        "remuda_vms_failing_checks",
        "Running VMs whose last health check failed.",
        ("pool",),
        _sum(((pools[row["pool_id"]],), bool(row["failing"])) for row in running),
    )
    yield _gauge(
        "remuda_slots",
        "Slots of running VMs.",
        ("pool",),
        _sum(((pools[row["pool_id"]],), row["slots"]) for row in running),
    )
    yield _gauge(
        "remuda_slots_used",
        "Slots that live attempts ask for, those placed ahead included.",
        ("pool",),
        _sum(((pools[row["pool_id"]],), row["slots"]) for row in measures.used),
    )
    for flag, help_ in (
        ("paused", "Whether launches of the pool are paused after failures."),
        ("frozen", "Whether the pool is frozen until an operator looks at it."),
    ):
        yield _gauge(
            f"remuda_pool_{flag}",
            help_,
            ("pool",),
            {(row["name"],): float(bool(row[flag])) for row in measures.pools},
        )
    yield _heartbeats(measures, pools)


def _heartbeats(measures: Measures, pools: Labels) -> Metric:
    ages: dict[str, list[float]] = defaultdict(list)
    for row in measures.vms:
        if row["state"] in ("running", "stalled") and row["heartbeat_age_s"] is not None:
            ages[pools[row["pool_id"]]].append(max(0.0, row["heartbeat_age_s"]))
    family = GaugeHistogramMetricFamily(
        "remuda_vm_heartbeat_age_seconds",
        "How long ago running and stalled VMs were last heard of.",
        labels=("pool",),
    )
    for pool in sorted(ages):
        buckets = [(_bound(le), sum(age <= le for age in ages[pool])) for le in AGE_S]
        buckets.append(("+Inf", len(ages[pool])))
        family.add_metric((pool,), buckets, gsum_value=sum(ages[pool]))
    return family


def _leases(measures: Measures, pools: Labels) -> Iterator[Metric]:
    kinds = ("pool", "kind")
    yield _gauge(
        "remuda_leases",
        "Leases that are held: those of jobs, and those users have acquired.",
        kinds,
        _sum(((pools[r["pool_id"]], r["kind"]), r["count"]) for r in measures.leases),
    )
    yield _gauge(
        "remuda_lease_slots",
        "Slots that are leased.",
        kinds,
        _sum(((pools[r["pool_id"]], r["kind"]), r["slots"]) for r in measures.leases),
    )
    yield _gauge(
        "remuda_lease_requests",
        "Requests for a lease that wait.",
        ("pool",),
        _sum(((pools[r["pool_id"]],), r["count"]) for r in measures.requests),
    )
    yield _gauge(
        "remuda_lease_request_oldest_age_seconds",
        "How long ago the oldest of them was made.",
        ("pool",),
        _most(((pools[r["pool_id"]],), r["oldest_s"]) for r in measures.requests),
    )


def _unowned(measures: Measures, pools: Labels) -> Iterator[Metric]:
    yield _gauge(
        "remuda_unowned_vms",
        "Machines that a provider has for us and no VM owns.",
        ("pool",),
        _sum(((pools[r["pool_id"]],), r["count"]) for r in measures.unowned),
    )
    yield _counter(
        "remuda_unowned_vm_seconds",
        "How long such machines have been there, all together.",
        ("pool",),
        _sum(((pools[r["pool_id"]],), r["seconds"]) for r in measures.unowned),
    )


_COUNTED = (
    ("placement", "remuda_placements", "Attempts that were placed on a VM.", ("pool",)),
    ("attempt", "remuda_attempts", "Attempts that ended, by how.", ("pool", "outcome")),
    ("submitted", "remuda_jobs_submitted", "Jobs that were submitted.", ()),
    ("ended", "remuda_jobs_ended", "Jobs that ended, by why.", ("reason",)),
    ("made", "remuda_vms_made", "VMs that were asked for.", ("pool",)),
)


def _counters(measures: Measures, pools: Labels) -> Iterator[Metric]:
    for what, name, help_, labels in _COUNTED:
        values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        for (kind, pool, by, _), count in measures.counts.items():
            if kind == what:
                given = {"pool": pools[pool], "outcome": by, "reason": by}
                key = tuple(given[label] for label in labels)
                values[key] = values.get(key, 0.0) + count
        yield _counter(name, help_, labels, values)


def _boots(measures: Measures, pools: Labels) -> Metric:
    found: dict[str, Counter[int]] = defaultdict(Counter)
    sums: Counter[str] = Counter()
    for (kind, pool, _, bucket), count in measures.counts.items():
        if kind == "boot":
            found[pools[pool]][bucket] += count
    for (kind, pool), seconds in measures.sums.items():
        if kind == "boot":
            sums[pools[pool]] += seconds
    family = HistogramMetricFamily(
        "remuda_vm_boot_seconds",
        "From the wish for a VM until it took work for the first time.",
        labels=("pool",),
    )
    for name in sorted(found):
        total, buckets = 0, []
        for number, le in enumerate(BOOT_S):  # width_bucket: 0 is below the first bound
            total += found[name][number]
            buckets.append((_bound(le), total))
        buckets.append(("+Inf", total + found[name][len(BOOT_S)]))
        family.add_metric((name,), buckets, sum_value=sums[name])
    return family


def _health(measures: Measures) -> Iterator[Metric]:
    yield _gauge(
        "remuda_sweep_last_run_timestamp_seconds",
        "When a worker last did the sweep that beat had sent.",
        ("sweep",),
        {(row["name"],): row["at"] for row in measures.sweeps},
    )
    told: Mapping[str, Any] = measures.database
    for name, help_, value in (
        ("remuda_database_size_bytes", "Size of the database.", told["size_bytes"]),
        ("remuda_database_connections", "Connections to the database.", told["connections"]),
        (
            "remuda_database_max_connections",
            "Connections that the server takes.",
            told["max_connections"],
        ),
    ):
        yield _gauge(name, help_, (), {(): value})


def _bound(value: float) -> str:
    return f"{value:g}" if value % 1 else f"{value:.1f}"
