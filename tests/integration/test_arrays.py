"""Arrays as wholes: parameters, progress, limits, cancelling parts of them, once more what failed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from remuda import BadInput, JobSpec, Refused, UnknownArray
from remuda.models import cancel
from remuda.models.database import rows
from remuda.spec_files import filler
from tests.integration.builders import row, together
from tests.integration.test_dependencies import _end, assert_settled
from tests.integration.workbench import Workbench


def _rows_of(bench: Workbench, array: int) -> list[dict[str, object]]:
    with bench.engine.connect() as connection:
        found = rows(
            connection,
            """SELECT j.id, j.array_index, j.params, j.name, j.spec_id, s.command, s.inputs
               FROM jobs j JOIN job_specs s ON s.id = j.spec_id WHERE array_id = :id ORDER BY j.id""",
            id=array,
        )
        return [dict(row) for row in found]


def test_rows_share_one_spec_and_are_filled_in_late(bench: Workbench, tmp_path: Path) -> None:
    bench.pool(vms=0)
    spec = JobSpec(["run", "{seed}", "{rate}", "{index}", "{other}"], name="s{seed}-{index}")
    table = tmp_path / "rows.csv"
    table.write_text("seed,rate\n7,{seed}\n8,x\n")
    with bench.client() as client:
        jobs = client.submit_array(spec, csv=table, pool="herd", max_running=3)
        array = client.array(jobs[0])
        assert (array.size, array.max_running, [job.index for job in jobs]) == (2, 3, [0, 1])
        product = client.submit_array(
            spec, parameters={"seed": range(3), "rate": [0.1]}, pool="herd"
        )
        assert [job.name for job in product] == ["s0-0", "s1-1", "s2-2"]
        several: list[dict[str, Any]] = [{}, {"rows": [{"seed": 1}], "csv": table}, {"rows": []}]
        for wrong in several:
            with pytest.raises(BadInput):
                client.submit_array(spec, pool="herd", **wrong)
        with pytest.raises(BadInput):
            client.submit_array(spec, 3, rows=[{"seed": 1}], pool="herd")
        with pytest.raises(UnknownArray):
            client.array(999)
    found = _rows_of(bench, array.id)
    assert len({job["spec_id"] for job in found}) == 1
    assert [job["name"] for job in found] == ["s7-0", "s8-1"]
    filled = [
        [filler(job["array_index"], job["params"])(word) for word in job["command"]]  # type: ignore[arg-type, attr-defined]
        for job in found
    ]
    assert filled == [["run", "7", "{seed}", "0", "{other}"], ["run", "8", "x", "1", "{other}"]]


def test_rows_with_inputs_of_their_own(bench: Workbench, tmp_path: Path) -> None:
    bench.pool(vms=0)
    for seed in "12":
        (tmp_path / f"{seed}.in").write_text(seed)
    spec = JobSpec(["cat", "{seed}"], inputs=[(f"{tmp_path}/{{seed}}.in", "in/{seed}")])
    with bench.client() as client:
        jobs = client.submit_array(spec, rows=[{"seed": 1}, {"seed": 2}], pool="herd")
        array = client.array(jobs[0])
    found = _rows_of(bench, array.id)
    inputs = [job["inputs"][0] for job in found]  # type: ignore[index]
    assert [file["name"] for file in inputs] == ["in/1", "in/2"]
    assert [bench.storage.read(file["url"]) for file in inputs] == [b"1", b"2"]
    assert [job["params"] for job in found] == [{"seed": "1"}, {"seed": "2"}]


def test_how_far_it_is_and_what_failed_again(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        first = client.submit(JobSpec(["true"]), pool="herd")
        spec = JobSpec(["true"], after=first, priority=7)
        jobs = client.submit_array(spec, 6, pool="herd", name="six", max_running=4)
        array = client.array(jobs[0])
        assert array.progress().blocked == 6
        with pytest.raises(Refused, match="no job of array"):
            array.resubmit()
        with bench.engine.begin() as connection:
            _end(connection, [first.id])
            _end(connection, [job.id for job in jobs[:3]])
            _end(connection, [jobs[3].id, jobs[5].id], "NONZERO", exit_code=1)
        now = array.progress()
        assert (now.size, now.blocked, now.queued, now.running) == (6, 0, 1, 0)
        assert (now.succeeded, now.failed, now.ended, now.done) == (3, 2, 5, False)
        assert array.reasons() == {"OK": 3, "NONZERO": 2}
        assert [job.id for job in array.jobs(states="NEW")] == [jobs[4].id]
        again = array.resubmit()
        assert (again.name, again.size, again.max_running) == ("six", 2, 4)
        assert [(job.index, job.info()["priority"]) for job in again.jobs()] == [(3, 7), (5, 7)]
        assert array.resubmit([5]).size == 1
        with pytest.raises(Refused, match="none of these"):
            array.resubmit([0])
        again.limit(None)
        assert again.max_running is None
        with pytest.raises(BadInput, match="max_running"):
            again.limit(0)
        assert again.cancel() == 2
        assert again.wait(10).done
        assert [a["id"] for a in client.arrays(live=True)] == [array.id, again.id + 1]
        client.pool("herd").close()
        with pytest.raises(Refused, match="CLOSING"):
            array.resubmit()
    with bench.engine.begin() as connection:
        assert_settled(connection)


def test_cancel_by_filters(bench: Workbench) -> None:
    bench.pool(vms=0)
    bench.pool("other", vms=0)
    with bench.client() as client:
        jobs = client.submit_array(JobSpec(["true"], name="fit-{index}"), 10, pool="herd")
        tagged = client.submit(JobSpec(["true"], tags=["night"]), pool="other")
        array = client.array(jobs[0])
        assert client.cancel(array=array, indices=range(2), dry_run=True) == 2
        assert client.counts("herd")["TERMINATED"] == 0
        assert client.cancel(array=array.id, indices=range(2)) == 2
        assert array.cancel(range(3)) == 1
        assert client.cancel(name="fit-4") == 1
        assert client.cancel(name="fit_*") == 0
        assert client.cancel(tag="night", pool="herd") == 0
        assert client.cancel(tag="night", owner="alice", states=["NEW"]) == 1
        assert tagged.refresh().reason == "CANCELLED"
        assert client.cancel([jobs[5].id, jobs[0]]) == 1
        assert client.cancel(pool="herd", states="RUNNING") == 0
        assert client.cancel(pool="herd") == 5
        assert client.cancel(owner="nobody") == 0
        for wrong in ({}, {"indices": [1]}, {"states": "WEIRD"}, {"jobs": jobs, "tag": "x"}):
            with pytest.raises(BadInput):
                client.cancel(**wrong)
        with pytest.raises(UnknownArray):
            client.cancel(array=999)
    with bench.engine.begin() as connection:
        assert_settled(connection)


def test_what_ends_while_it_is_cancelled_has_ended(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        jobs = client.submit_array(JobSpec(["true"]), 300, pool="herd")
        ids, array = [job.id for job in jobs], client.array(jobs[0]).id

        def end() -> int:
            for start in range(0, 300, 10):
                with bench.engine.begin() as connection:
                    _end(connection, ids[start : start + 10])
            return 0

        def stop() -> int:
            with bench.engine.begin() as connection:
                return len(cancel.cancel_matching(connection, array_id=array))

        _, cancelled = together(end, stop)
        found = client.reasons("herd")
        assert found.get("CANCELLED", 0) == cancelled
        assert sum(found.values()) == 300
    with bench.engine.begin() as connection:
        assert_settled(connection)


def test_many_are_one_statements_work(bench: Workbench) -> None:
    bench.pool(vms=0)
    size = 20_000
    with bench.client() as client:
        began = time.monotonic()
        table = ({"seed": i, "rate": i / 7} for i in range(size))
        jobs = client.submit_array(JobSpec(["run", "{seed}", "{rate}"]), rows=table, pool="herd")
        middle = time.monotonic()
        array = client.array(jobs[0])
        assert array.cancel(range(size - 1)) == size - 1
        assert array.progress().ended == size - 1
        # Bounds wide enough for a busy machine, too narrow for a statement a job.
        assert middle - began < 20
        assert time.monotonic() - middle < 20
    with bench.engine.connect() as connection:
        assert row(connection, "arrays", array.id)["ended"] == size - 1
