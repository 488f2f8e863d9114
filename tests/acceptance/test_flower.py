"""Flower, unmodified, on every broker: VMs are workers there, attempts are tasks, and both obey."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remuda import Client, JobSpec
from remuda.client import Pool
from remuda.tasks.flower.ids import task_id
from tests.system import System, eventually

USER = "ann:s3cret"


class Flower:
    """A Flower process and its REST API."""

    def __init__(self, system: System) -> None:
        """Start it."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        system.environment["FLOWER_BASIC_AUTH"] = USER
        system.start("flower", "flower", "--address=127.0.0.1", f"--port={self._port}")

    def ask(self, path: str, *, post: bool = False, user: str = USER) -> dict[str, Any]:
        """Return the answer to a request; {} when there is none."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}",
            headers={"Authorization": "Basic " + base64.b64encode(user.encode()).decode()},
            data=b"" if post else None,
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return {}

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the page of workers, by name."""
        rows = self.ask("/workers?json=1").get("data", [])
        return {row["hostname"]: row for row in rows}

    def task(self, attempt_id: int, state: str) -> dict[str, Any]:
        """Return the attempt's task as soon as it is in that state."""

        seen: dict[str, Any] = {}

        def look() -> bool:
            seen.update(self.ask(f"/api/task/info/{task_id(attempt_id)}"))
            return seen.get("state") == state

        try:
            eventually(f"attempt {attempt_id} is {state} in Flower", look, timeout_s=20)
        except AssertionError as error:
            raise AssertionError(f"{error}, but {seen}") from None
        return seen


@pytest.fixture
def watched(tmp_path: Path, database_url: str, broker_url: str) -> Iterator[System]:
    """A system on each broker in turn; nothing is set for Flower."""
    system = System(tmp_path, database_url=database_url, broker_url=broker_url)
    try:
        system.start_worker()
        system.start_beat()
        yield system
    finally:
        system.close()


def attempt_of(system: System, job_id: int) -> int:
    """Return the job's latest attempt."""
    statement = "SELECT max(id) AS id FROM attempts WHERE job_id = %(job)s"
    found = eventually(
        f"job {job_id} has its place", lambda: system.query(statement, job=job_id)[0]["id"]
    )
    assert isinstance(found, int)
    return found


def reason(system: System, job_id: int) -> str:
    """Return why the job ended."""
    found = system.query("SELECT reason FROM jobs WHERE id = %(job)s", job=job_id)
    return str(found[0]["reason"])


def test_flower_shows_vms_and_attempts_and_cancels_jobs(watched: System, broker_url: str) -> None:
    """From no Flower to VMs and jobs in it, there and back."""
    with watched.client() as client:
        pool = client.create_pool("sim", provider="local", slots_per_vm=3, heartbeat_s=1)
        pool.submit()
        early = client.submit(JobSpec(["sleep", "301"], name="early"), pool=pool)
        attempt_of(watched, early.id)
        flower = Flower(watched)
        eventually(
            "the VM is online",
            lambda: flower.workers().get("sim-1@sim", {}).get("status"),
            timeout_s=30,
        )
        assert flower.ask("/api/tasks", user="ann:wrong") == {}

        # What ran before Flower came is told, too.
        task = flower.task(attempt_of(watched, early.id), "STARTED")
        assert (task["name"], task["args"], task["worker"]) == ("early", "sleep 301", "sim-1@sim")

        good = client.submit(JobSpec(["echo", "well done"]), pool=pool)
        task = flower.task(attempt_of(watched, good.id), "SUCCESS")
        assert task["name"] == task["args"] == "echo 'well done'"
        assert (task["result"], task["worker"]) == ("OK, exit code 0", "sim-1@sim")
        assert task["runtime"] > 0
        assert f"job {good.id}" in task["kwargs"]

        # Flower's button.
        attempt = attempt_of(watched, early.id)
        flower.ask(f"/api/task/revoke/{task_id(attempt)}?terminate=true", post=True)
        assert reason(watched, early.wait(30).id) == "CANCELLED"
        assert flower.task(attempt, "REVOKED")["result"] == "CANCELLED, SIGTERM"
        if broker_url.startswith("filesystem"):
            look_closer(watched, client, flower, pool)  # it is the same on every broker
    watched.stop("flower", timeout_s=15)
    assert "Traceback" not in watched.log("worker")


def look_closer(watched: System, client: Client, flower: Flower, pool: Pool) -> None:
    """Retries, control tasks, Celery's own command, the end of a VM."""
    bad = client.submit(JobSpec(["sh", "-c", "exit 3"], retries=1), pool=pool)
    assert bad.wait(30).state == "TERMINATED"
    task = flower.task(attempt_of(watched, bad.id), "FAILURE")
    assert task["exception"] == task["result"] == "NONZERO, exit code 3"
    assert task["retries"] == 1
    first = flower.task(attempt_of(watched, bad.id) - 1, "RETRY")
    assert first["retries"] == 0

    # Control tasks say what they did, as soon as Flower has had Celery send its own events.
    assert "enabled" in control(watched, "enable_events")
    files = client.submit(JobSpec(["touch", "a"], outputs=["a"]), pool=pool)
    assert files.result(timeout_s=30).exit_code == 0
    fetched = eventually(
        "get_results is there",
        lambda: flower.ask("/api/tasks?taskname=remuda.get_results&state=SUCCESS"),
        timeout_s=20,
    )
    (told,) = fetched.values()
    assert told["args"] == f"VM 1, attempts {attempt_of(watched, files.id)}"
    assert told["result"] == "'1 collected from sim-1'"

    # Celery's command.
    late = client.submit(JobSpec(["sleep", "302"]), pool=pool)
    assert f"cancelling job {late.id}" in control(
        watched, "revoke", task_id(attempt_of(watched, late.id))
    )
    assert reason(watched, late.wait(30).id) == "CANCELLED"
    assert f"job {late.id} had ended" in control(watched, "revoke", str(late.id))
    assert "no such job" in control(watched, "revoke", task_id(999_999))

    eventually(  # told with the VM's next heartbeat
        "all five are counted", lambda: flower.workers()["sim-1@sim"]["processed"] >= 5
    )
    assert flower.workers()["sim-1@sim"]["sw_ident"] == "remuda"
    pool.close(now=True)
    eventually(
        "the VM is offline",
        lambda: not flower.workers()["sim-1@sim"]["status"],
        timeout_s=30,
    )


def celery(system: System, *words: str) -> str:
    """Return what `celery -A remuda.tasks WORDS` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "remuda.tasks", *words],
        env=system.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def control(system: System, *words: str) -> str:
    """Return what `celery control` prints; of one worker named it waits for no other's answer."""
    worker = f"worker@{socket.gethostname()}"
    return celery(system, "control", "-t", "20", "-d", worker, *words)


def test_remote_control_lists_the_tasks(system: System) -> None:
    """`celery inspect registered` reaches the worker and names its tasks."""
    found = eventually(
        "the worker tells",
        lambda: (
            "remuda.submit_job" in (t := celery(system, "inspect", "registered", "-t", "5")) and t
        ),
    )
    assert isinstance(found, str)
    for task in ("update_job_state", "get_results", "spawn_vm", "terminate_vm", "expire"):
        assert f"remuda.{task}" in found
