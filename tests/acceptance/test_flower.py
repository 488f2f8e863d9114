"""Flower, unmodified, on every broker: the worker is there, and so are its tasks."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from remuda import JobSpec
from tests.system import System, eventually, running_system


@pytest.mark.parametrize("broker", ["filesystem", "amqp", "redis"])
def test_flower_sees_worker_and_tasks(
    broker: str, tmp_path: Path, database_url: str, request: pytest.FixtureRequest
) -> None:
    """`celery -A remuda.tasks flower` lists the worker as online and the tasks it has done."""
    fixture = {"amqp": "rabbitmq_url", "redis": "redis_url"}.get(broker)
    url = request.getfixturevalue(fixture) if fixture else "filesystem://"
    system = System(tmp_path, database_url=database_url, broker_url=url)
    try:
        system.start_worker("worker", "-E")
        system.start_beat()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        system.environment["FLOWER_UNAUTHENTICATED_API"] = "true"
        system.start("flower", "flower", "--address=127.0.0.1", f"--port={port}")

        def get(path: str) -> dict[str, object]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                    found: dict[str, object] = json.load(answer)
                    return found
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                return {}

        eventually(
            "Flower knows the worker",
            lambda: any("worker@" in name for name in get("/api/workers?refresh=1")),
            timeout_s=60,
        )
        eventually(
            "Flower has seen tasks succeed",
            lambda: any(
                isinstance(task, dict) and task.get("state") == "SUCCESS"
                for task in get("/api/tasks?limit=50").values()
            ),
            timeout_s=60,
        )
        system.stop("flower", timeout_s=15)
    finally:
        system.close()


def test_revoke_and_remote_control_reach_the_worker(tmp_path: Path, database_url: str) -> None:
    """Remote control works while jobs run, over the embedded broker."""
    with running_system(tmp_path, database_url=database_url) as system, system.client() as client:
        pool = client.create_pool("sim", provider="local", slots_per_vm=1)
        pool.submit()
        client.submit(JobSpec(["true"]), pool=pool).result(timeout_s=60)
        import subprocess
        import sys

        words = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "remuda.tasks",
            "inspect",
            "registered",
            "-t",
            "5",
        ]
        told = subprocess.run(
            words, env=system.environment, capture_output=True, text=True, check=False
        )
        for task in ("submit_job", "update_job_state", "get_results", "spawn_vm", "terminate_vm"):
            assert f"remuda.{task}" in told.stdout, told.stdout + told.stderr
