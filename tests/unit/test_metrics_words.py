"""Names, units, alerts and dashboard: what Prometheus and a reader of the docs expect."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from remuda.errors import BadInput
from remuda.metrics.collector import SystemCollector
from remuda.metrics.families import families
from remuda.models.measuring import Measures
from remuda.tasks import figures
from remuda.tasks.serving import ProcessesCollector, address, registry_of

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "compose/prometheus/alerts.yml"
OWNERS = {1: "ann", 2: "bob", 3: "eve"}


def waiting(pool: int, owner: int, count: int, oldest_s: float) -> dict[str, Any]:
    """Return a row of waiting jobs."""
    common = {"pool_id": pool, "owner_id": owner, "state": "waiting"}
    return common | {"count": count, "cores": 2 * count, "oldest_s": oldest_s}


def vm(state: str, age_s: float | None, *, draining: bool = False) -> dict[str, Any]:
    """Return the row of a VM."""
    common = {"pool_id": 1, "state": state, "draining": draining, "slots": 4, "failing": False}
    return common | {"heartbeat_age_s": age_s}


def measures(**more: Any) -> Measures:
    """Return measures with something of everything."""
    given: dict[str, Any] = {
        "jobs": [waiting(1, 1, 5, 60.0), waiting(1, 2, 3, 90.0), waiting(2, 3, 1, 7.0)],
        "vms": [vm("running", 3.0), vm("running", 70.0, draining=True), vm("new", None)],
        "used": [{"pool_id": 1, "slots": 3}],
        "leases": [{"pool_id": 1, "kind": "user", "count": 2, "slots": 4}],
        "requests": [{"pool_id": 1, "count": 7, "oldest_s": 4.0}],
        "unowned": [{"pool_id": 1, "count": 1, "seconds": 120.0}],
        "sweeps": [{"name": "declare_stalled", "at": 1000.0}],
        "database": {"size_bytes": 1, "connections": 2, "max_connections": 60},
        "pools": [{"id": 1, "name": "sim", "paused": None, "frozen": True}],
        "owners": OWNERS,
        "counts": Counter(
            {
                ("placement", 1, "", -1): 9,
                ("attempt", 1, "ok", -1): 6,
                ("attempt", 1, "lost", -1): 1,
                ("submitted", None, "", -1): 20,
                ("ended", None, "ok", -1): 6,
                ("made", 1, "", -1): 3,
                ("boot", 1, "", 0): 1,
                ("boot", 1, "", 11): 2,
            }
        ),
        "sums": Counter({("boot", 1): 9000.5}),
    }
    return Measures(**(given | more))


def samples(found: Measures, *, most_owners: int = 10) -> dict[tuple[str, str], float]:
    """Return values by name and labels."""
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in families(found, most_owners=most_owners)
        for sample in family.samples
    }


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All that is ever exported, as text: the database, the broker, processes."""
    from prometheus_client import values

    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    kept = figures.Figures(tmp_path / "metrics")
    kept.sweep_s.labels("dispatch").observe(0.2)
    kept.sweep_failures.labels("dispatch").inc()
    kept.placement_s.observe(0.1)
    kept.send_failures.labels("remuda.spawn_vm").inc()
    kept.events_dropped.inc(3)
    kept.close()
    whole = SystemCollector(None, lambda: None)  # type: ignore[arg-type]
    found = list(families(measures(), most_owners=10))
    monkeypatch.setattr(whole, "_database", lambda: [*_ups(), *found])
    processes = ProcessesCollector(tmp_path / "metrics")
    return generate_latest(registry_of(whole, processes)).decode()


def _ups() -> list[Metric]:
    from remuda.metrics.collector import _one

    return [
        _one("remuda_database_up", "…", 1),
        _one("remuda_database_scrape_seconds", "…", 0.1),
    ]


def promtool(*words: str, given: str = "", at: Path = ROOT) -> str:
    """Return what promtool says, which must be content."""
    done = subprocess.run(
        ["promtool", *words], input=given, cwd=at, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_names_and_units_follow_the_conventions(exported: str) -> None:
    assert promtool("check", "metrics", given=exported) == ""
    names = [family.name for family in text_string_to_metric_families(exported)]
    assert all(name.startswith("remuda_") for name in names)
    assert not [name for name in names if re.search(r"_(ms|minutes|hours|mb|kb|percent)$", name)]


def test_alerts_are_valid_and_do_what_they_say() -> None:
    promtool("check", "rules", str(ALERTS))
    promtool("test", "rules", "alerts_test.yml", at=ALERTS.parent)
    for name in ("prometheus.yml", "compose.yml"):
        promtool("check", "config", name, at=ALERTS.parent)


def test_each_alert_has_its_entry_in_the_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    alerts = _of_alerts("alert")
    assert headings == alerts
    assert _of_alerts("runbook_url") == [f"docs/runbook.md#{name.lower()}" for name in alerts]
    assert set(_of_alerts("severity")) <= {"page", "ticket"}


def _of_alerts(key: str) -> list[str]:
    return re.findall(rf"^ +(?:- )?{key}: '?(.*?)'?$", ALERTS.read_text(), re.MULTILINE)


def _dashboard() -> list[str]:
    board = json.loads((ROOT / "compose/grafana/remuda.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_alerts_and_dashboard_ask_for_what_is_exported(exported: str) -> None:
    there = set(re.findall(r"^(remuda_\w+)", exported, re.MULTILINE))
    alerts = _of_alerts("expr")
    assert len(alerts) == len(_of_alerts("alert")) > 10
    asked = _dashboard() + alerts
    wanted = {name for expr in asked for name in re.findall(r"\bremuda_\w+", expr)}
    assert wanted <= there
    # … and what is exported is shown.
    roots = {re.sub(r"_(bucket|count|sum|gcount|gsum|created)$", "", name) for name in there}
    assert {re.sub(r"_bucket$", "", name) for name in wanted} >= roots


def test_the_dashboards_queries_are_valid(tmp_path: Path) -> None:
    queries = [
        expr.replace("$__rate_interval", "5m").replace("$pool", ".*") for expr in _dashboard()
    ]
    rules = [{"record": f"q:{i}", "expr": query} for i, query in enumerate(queries)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # is YAML
    assert f"{len(queries)} rules found" in promtool("check", "rules", str(path))


def test_every_metric_is_in_the_docs(exported: str) -> None:
    told = (ROOT / "docs/metrics.md").read_text()
    for line in exported.splitlines():
        if line.startswith("# TYPE"):
            name = re.sub(r"_(gcount|gsum|created)$", "", line.split()[2])
            assert f"`{name}`" in told, name


def test_the_queue_is_told_by_pool_and_owner() -> None:
    found = samples(measures())
    assert found["remuda_queue_jobs", "sim,ann"] == 5
    assert found["remuda_queue_slots", "sim,bob"] == 6
    assert found["remuda_queue_oldest_age_seconds", "sim,bob"] == 90
    assert found["remuda_jobs", "sim,waiting"] == 8


def test_owners_and_pools_beyond_the_limit_are_others() -> None:
    found = samples(measures(), most_owners=1)
    assert found["remuda_queue_jobs", "sim,ann"] == 5
    assert found["remuda_queue_jobs", "sim,other"] == 3
    assert found["remuda_queue_jobs", "other,other"] == 1
    assert ("remuda_queue_jobs", "sim,bob") not in found
    everybody = {number: f"owner{number}" for number in range(1000)}
    many = [waiting(1, number, 1, 1.0) for number in everybody]
    crowd = samples(measures(jobs=many, owners=everybody), most_owners=50)
    assert len([key for key in crowd if key[0] == "remuda_queue_jobs"]) == 51
    assert crowd["remuda_queue_jobs", "sim,other"] == 950


def test_histograms_add_up() -> None:
    found = samples(measures())
    assert found["remuda_vm_boot_seconds_bucket", "sim,1.0"] == 1
    assert found["remuda_vm_boot_seconds_bucket", "sim,3600.0"] == 1
    assert found["remuda_vm_boot_seconds_bucket", "sim,+Inf"] == 3
    assert found["remuda_vm_boot_seconds_sum", "sim"] == 9000.5
    assert found["remuda_vm_heartbeat_age_seconds_bucket", "sim,5.0"] == 1
    assert found["remuda_vm_heartbeat_age_seconds_bucket", "sim,+Inf"] == 2


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [
        ("127.0.0.1:9808", "127.0.0.1", 9808),
        ("9808", "127.0.0.1", 9808),
        ("[::1]:0", "::1", 0),
    ],
)
def test_an_address_is_read(listen: str, host: str, port: int) -> None:
    assert address(listen) == (host, port)


@pytest.mark.parametrize("wrong", ["", "here", "127.0.0.1:", ":65536", "a:-1", "a:²"])
def test_a_wrong_address_is_refused(wrong: str) -> None:
    with pytest.raises(BadInput, match="HOST:PORT"):
        address(wrong)
