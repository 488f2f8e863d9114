"""Flower, unmodified, on every broker: the worker is there, and so are its tasks."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.system import System, eventually


def test_flower_sees_worker_and_tasks(tmp_path: Path, database_url: str, broker_url: str) -> None:
    """`celery -A remuda.tasks flower` lists the worker as online and the tasks it has done."""
    system = System(tmp_path, database_url=database_url, broker_url=broker_url)
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


def test_remote_control_lists_the_tasks(system: System) -> None:
    """`celery inspect registered` reaches the worker and names its tasks."""
    words = [sys.executable, "-m", "celery", "-A", "remuda.tasks", "inspect", "registered"]

    def told() -> str:
        done = subprocess.run(
            [*words, "-t", "5"], env=system.environment, capture_output=True, text=True, check=False
        )
        return done.stdout

    found = eventually("the worker tells", lambda: "remuda.submit_job" in (t := told()) and t)
    assert isinstance(found, str)
    for task in ("update_job_state", "get_results", "spawn_vm", "terminate_vm", "expire"):
        assert f"remuda.{task}" in found
