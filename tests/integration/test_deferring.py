"""Jobs that can wait: put off when they are submitted, told so, and run in their hour."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from remuda import Client, JobSpec
from remuda.config import Settings, load_settings
from remuda.errors import BadInput
from remuda.tasks import sizing
from remuda.tasks.enqueueing import enqueue
from tests.integration.workbench import Workbench
from tests.integration.yard import Yard, yard

__all__ = ["yard"]


def settings_with(kept: Settings, folder: Path) -> Settings:
    """Hours of which the next but one is best."""
    hours = [1.0] * 24
    hours[(datetime.now(UTC) + timedelta(hours=2)).hour] = 0.1
    (folder / "hours.json").write_text(json.dumps({"hours": hours}))
    return load_settings(**{**kept.model_dump(), "hours_file": folder / "hours.json"})


def test_it_waits_for_the_best_hour(bench: Workbench, tmp_path: Path) -> None:
    bench.pool(vms=4)
    with Client(settings_with(bench.settings, tmp_path), owner="alice") as client:
        spec = JobSpec(["x"], deferrable=True, max_queue_s=6 * 3600)
        jobs = client.submit_array(spec, 3, pool="herd")
        usual = client.submit(JobSpec(["x"], max_queue_s=6 * 3600), pool="herd")
        hurried = client.submit(JobSpec(["x"], deferrable=True, max_queue_s=60), pool="herd")
        assert sorted(bench.place()) == [usual.id, hurried.id]
        info = jobs[0].info()
        start = info["not_before"]
        assert (start.minute, start.second, start.microsecond) == (0, 0, 0)
        assert timedelta(0) < start - info["submitted_at"] <= timedelta(hours=2)
        assert "put off to a better hour" in " ".join(client.explain(jobs[0]))
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET not_before = now() WHERE not_before > now()"))
        assert sorted(bench.place()) == [job.id for job in jobs]


def test_without_hours_it_is_refused_and_nothing_is_submitted(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        with pytest.raises(BadInput, match="needs hours to choose from"):
            client.submit(JobSpec(["x"], deferrable=True, max_queue_s=3600), pool="herd")
        assert client.jobs() == []


def test_producers_with_only_the_broker(yard: Yard, tmp_path: Path) -> None:
    yard.pool()
    spec: dict[str, Any] = {"command": ["x"], "deferrable": True, "max_queue_s": 6 * 3600}
    with pytest.raises(BadInput, match="needs hours to choose from"):
        enqueue(yard.runtime, [spec], pool="herd", owner="alice", key="k")
    yard.runtime.settings = settings_with(yard.runtime.settings, tmp_path)
    specs = [spec, {"command": ["x"]}]
    later, now = enqueue(yard.runtime, specs, pool="herd", owner="alice", key="k")
    assert yard.row("jobs", later)["not_before"] > datetime.now(UTC)
    assert yard.row("jobs", now)["not_before"] is None
    assert enqueue(yard.runtime, specs, pool="herd", owner="alice", key="k") == [later, now]


def test_no_pool_grows_for_what_waits(yard: Yard, tmp_path: Path) -> None:
    yard.pool(is_elastic=True, elastic_maximum_slots=4)
    with Client(settings_with(yard.runtime.settings, tmp_path), owner="alice") as client:
        client.submit(JobSpec(["x"], deferrable=True, max_queue_s=6 * 3600), pool="herd")
    sizing.resize_pools(yard.runtime)
    assert not yard.the_pool["decision"]["grow_vms"]
