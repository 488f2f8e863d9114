"""Simulations by client and command: of the pool's own jobs, of others, with changed settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from remuda.cli.app import root
from remuda.errors import BadInput
from remuda.traces import synthetic_trace
from tests.integration.builders import age, make_jobs
from tests.integration.workbench import Workbench
from tests.unit.cli import stand_in

ELASTIC: dict[str, Any] = {
    "is_elastic": True,
    "elastic_maximum_slots": 4,
    "elastic_resize_period_s": 30,
    "offers": [{"name": "eu", "price": 0.5}],
}


def test_its_own_jobs_are_played(bench: Workbench) -> None:
    pool_id = bench.pool(**ELASTIC)
    with bench.client() as client:
        pool = client.pool("herd")
        with pytest.raises(BadInput, match="no job of the pool has ended"):
            pool.simulate()
        with bench.engine.begin() as connection:
            jobs = make_jobs(connection, pool_id, 3)
            age(connection, "jobs", jobs, "submitted_at", 3600)
        bench.place()
        for job in jobs:
            bench.start(job)
            bench.end(job)
        [found] = pool.simulate()
        assert (found.summary["jobs"], found.summary["ended"]) == (3, 3)
        assert found.summary["cost"]
        assert pool.simulate(since_s=7200)[0].summary["jobs"] == 3


def test_changed_settings_are_compared_for_the_same_time(bench: Workbench) -> None:
    bench.pool(vms=0, **ELASTIC)
    with bench.client() as client:
        pool = client.pool("herd")
        before = pool.info()
        trace = synthetic_trace(jobs=200, span_s=3600, wall_s=120)
        present, changed = pool.simulate(trace, boot_s=10, elastic_maximum_slots=40)
        assert pool.update().info() == before
        assert [one.name for one in (present, changed)] == ["present", "changed"]
        assert present.points[-1][0] == changed.points[-1][0]
        assert changed.summary["wait_p95_s"] < present.summary["wait_p95_s"]  # type: ignore[operator]
        assert present.costs[-1][1] == pytest.approx(present.summary["cost"])
        for wrong, match in (
            ({"elastic_resize_factor": 7}, "elastic_resize_factor"),
            ({"elastic_minimum_slots": 5}, r"elastic_minimum_slots \(5\) is above"),
            ({"tags": ["x"]}, "cannot change tags"),
            ({"boot_s": -1}, "boot_s"),
            ({"price": float("nan")}, "price"),
        ):
            with pytest.raises(BadInput, match=match):
                pool.simulate(trace, **wrong)


def test_the_command_tells_and_draws(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench.pool(vms=0, **ELASTIC)
    (tmp_path / "jobs.csv").write_text("submit_s,wall_s,count\n0,600,9\n900,60,3\n")
    with bench.client() as client:
        stand_in(monkeypatch, client)

        def run(*words: str) -> Any:
            return CliRunner().invoke(root, ["pool", "simulate", "herd", *words])

        png = tmp_path / "out.png"
        trace = ("--trace", str(tmp_path / "jobs.csv"))
        done = run(*trace, "--max-slots", "12", "--price", "2", "--png", str(png))
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines()[0].split() == ["PRESENT", "CHANGED"]
        with Image.open(png) as picture:
            assert picture.size == (1320, 1260)
            assert len(picture.convert("RGB").resize((200, 200)).getcolors(40_000) or ()) > 20
        told = json.loads(run(*trace, "--policies", "[]", "--json").stdout)
        assert [one["name"] for one in told] == ["present", "changed"]
        assert told[0]["vms_max"] == 2
        assert run(*trace, "--from-history").exit_code == 2
        assert run("--synthetic", "jobs=ten").exit_code == 2
        assert run(*trace, "--start", "noon").exit_code == 2
