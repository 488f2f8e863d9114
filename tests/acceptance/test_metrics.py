"""A real Prometheus scrapes `remuda metrics` of a running system, and a worker serves its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from remuda import JobSpec
from tests.system import System, eventually, running_system

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_prometheus_scrapes_a_system(tmp_path: Path, database_url: str) -> None:
    """Jobs, VMs and sweeps of two workers come to Prometheus; its alerts are loaded and quiet."""
    port, web = free_port(), free_port()
    config = (ROOT / "compose/prometheus/prometheus.yml").read_text()
    config = config.replace("127.0.0.1:9808", f"127.0.0.1:{port}").replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(config)
    alerts = (ROOT / "compose/prometheus/alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(alerts)

    def get(path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{web}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]
        except OSError:
            return {}

    def value(query: str) -> float | None:
        found = get("query", query=query).get("result")
        return float(found[0]["value"][1]) if found else None

    with running_system(tmp_path, database_url=database_url) as system:
        system.start_worker("second")
        environment = system.environment
        exporter = subprocess.Popen(
            [sys.executable, "-m", "remuda", "metrics", f"--listen=127.0.0.1:{port}", "--cache=0"],
            env=environment,
        )
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path}/prometheus.yml",
                f"--storage.tsdb.path={tmp_path}/tsdb",
                f"--web.listen-address=127.0.0.1:{web}",
                "--log.level=error",
            ]
        )
        try:
            with system.client() as client:
                pool = client.create_pool("sim", provider="local", slots_per_vm=2, heartbeat_s=1)
                pool.submit()
                jobs = client.submit_array(JobSpec(["/bin/true"]), 5, pool=pool)
                for job in jobs:
                    job.wait(60)
            eventually(
                "the attempts are counted",
                lambda: value('remuda_attempts_total{pool="sim",outcome="ok"}') == 5,
            )
            eventually(
                "both workers' sweeps are",
                lambda: value('remuda_sweep_duration_seconds_count{sweep="resize_pools"}'),
            )
            for query in (
                'remuda_vms{pool="sim",state="running"}',
                "remuda_broker_up",
                "remuda_vm_boot_seconds_count",
            ):
                eventually(f"{query} is 1", lambda query=query: value(query) == 1)  # type: ignore[misc]
            eventually("placing is", lambda: value("remuda_placement_duration_seconds_count"))
            (group,) = eventually("its rules are told", lambda: get("rules").get("groups"))
            assert len(group["rules"]) == alerts.count("- alert:")
            assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
            alerts_now = eventually("its alerts are told", lambda: get("alerts"))["alerts"]
            assert not [a for a in alerts_now if a["state"] == "firing"]
            assert len(list((tmp_path / "state/metrics").glob("*.lock"))) == 2
        finally:
            for process in (server, exporter):
                process.terminate()
                process.wait(20)


def test_a_worker_serves_what_it_measures(tmp_path: Path, database_url: str) -> None:
    """`remuda worker --metrics` tells of its sweeps; a second one is refused that address."""
    port = free_port()
    command = [sys.executable, "-m", "remuda", "worker", f"--metrics=127.0.0.1:{port}"]

    def served() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    system = System(tmp_path, database_url=database_url, broker_url="filesystem://")
    try:
        system.start_beat()
        with (tmp_path / "worker.log").open("ab") as log:
            system.processes["worker"] = subprocess.Popen(
                command,
                env=system.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        for series in (
            'remuda_sweep_duration_seconds_count{sweep="declare_stalled"}',
            "remuda_placement_duration_seconds_count",
            "process_cpu_seconds_total",
        ):
            eventually(f"{series} is served", lambda series=series: series in served())  # type: ignore[misc]
        assert "remuda_database_up" not in served()
        second = subprocess.run(
            command, env=system.environment, capture_output=True, text=True, timeout=60
        )
        assert second.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in second.stderr
        system.stop("worker")
        assert not served()
    finally:
        system.close()
