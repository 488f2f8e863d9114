"""Submitting: what is stored, as one or as an array; what is refused; pools and keys."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from remuda import (
    BadInput,
    Client,
    DataStagingError,
    JobSpec,
    NoResources,
    Refused,
    UnknownPool,
)
from remuda.client.preparing import CHUNK
from remuda.models.database import rows
from tests.integration.workbench import Workbench


def _count(bench: Workbench, table: str = "jobs") -> int:
    with bench.engine.connect() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {table}")))


def _spec_of(bench: Workbench, job_id: int) -> dict[str, Any]:
    with bench.engine.connect() as connection:
        [row] = rows(
            connection,
            "SELECT s.* FROM job_specs s JOIN jobs j ON j.spec_id = s.id WHERE j.id = :id",
            id=job_id,
        )
        return dict(row)


def test_inputs_are_stored_and_paths_resolved_here_and_now(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.pool()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sim.py").write_text("print()")
    (tmp_path / "sim.py").chmod(0o755)
    with bench.client() as client:
        job = client.submit(
            JobSpec(
                ["python3", "sim.py"],
                inputs=["sim.py"],
                outputs=["out.csv", ("log", "logs/log")],
                output_dir="results/../results",
            ),
            pool="herd",
        )
    spec = _spec_of(bench, job.id)
    [stored] = spec["inputs"]
    assert (stored["name"], stored["size"], stored["mode"]) == ("sim.py", 7, 0o755)
    assert bench.storage.read(stored["url"]) == b"print()"
    assert spec["output_dir"] == str(tmp_path / "results")
    assert spec["outputs"] == [
        {"name": "out.csv", "optional": False},
        {"name": "log", "optional": False, "local": "logs/log"},
    ]


def test_a_wrong_job_in_the_middle_leaves_nothing(bench: Workbench) -> None:
    bench.pool()

    def specs(last: str) -> Iterator[JobSpec]:
        for _ in range(CHUNK + 3):
            yield JobSpec(["true"])
        yield JobSpec(["true"], inputs=[(last, "in")])

    with bench.client() as client:
        with pytest.raises(DataStagingError, match=r"no input file 'nowhere\.csv'"):
            client.submit_many(specs("nowhere.csv"), pool="herd")
        with pytest.raises(BadInput, match="JobSpec"):
            client.submit_many([JobSpec(["true"]), ["true"]], pool="herd")  # type: ignore[list-item]
        with pytest.raises(BadInput, match="cores"):
            client.submit_many((JobSpec(["true"], cores=2 - i) for i in range(3)), pool="herd")
    assert (_count(bench), _count(bench, "arrays"), _count(bench, "job_specs")) == (0, 0, 0)


def test_a_file_is_stored_as_it_is_when_its_job_is_yielded(
    bench: Workbench, tmp_path: Path
) -> None:
    """The generator writes one file again and again, faster than its clock ticks."""
    bench.pool()
    parameters = tmp_path / "parameters"

    def specs(key: str | None) -> Iterator[JobSpec]:
        for number in range(10):
            parameters.write_text(str(number))
            yield JobSpec(
                ["cat", "p"],
                inputs=[(parameters, "p")],
                idempotency_key=f"{key}{number}" if key else None,
            )

    with bench.client() as client:
        for key in (None, "key"):
            jobs = client.submit_many(specs(key), pool="herd")
            urls = [_spec_of(bench, job.id)["inputs"][0]["url"] for job in jobs]
            assert [bench.storage.read(url) for url in urls] == [b"%d" % n for n in range(10)]


def test_a_long_generator_becomes_one_array_in_order(bench: Workbench) -> None:
    bench.pool()
    size = 2 * CHUNK + 7
    with bench.client() as client:
        jobs = client.submit_many(
            (JobSpec(["echo", str(i % 3)], name=str(i)) for i in range(size)), pool="herd"
        )
        assert [job.id for job in jobs] == sorted({job.id for job in jobs})
        assert len(jobs) == size
        assert jobs[CHUNK].name == str(CHUNK)
        assert client.counts("herd")["NEW"] == size
        assert client.submit_many([], pool="herd") == []
    with bench.engine.connect() as connection:
        [array] = rows(connection, "SELECT * FROM arrays")
    assert array["size"] == size


def test_the_same_spec_again_and_again_is_one_row(bench: Workbench) -> None:
    bench.pool()
    spec = JobSpec(["true"])
    with bench.client() as client:
        client.submit_many([spec] * 50, pool="herd")
        client.submit_many((JobSpec(["true"], cores=1 + i % 2) for i in range(50)), pool="herd")
    assert _count(bench, "job_specs") == 2


def test_a_numbered_array_shares_its_spec(bench: Workbench) -> None:
    bench.pool()
    spec = JobSpec(["echo", "{index}"], name="t-{index}", outputs=["{index}.txt"])
    with bench.client() as client:
        jobs = client.submit_array(spec, 100, pool="herd")
        more = client.submit_array(spec, [7, -3], pool="herd", name="chosen")
        assert [(job.index, job.name) for job in jobs[:2]] == [(0, "t-0"), (1, "t-1")]
        assert [job.index for job in more] == [7, -3]
    assert _count(bench, "job_specs") == 2
    assert _spec_of(bench, jobs[0].id)["command"] == ["echo", "{index}"]
    with bench.engine.connect() as connection:
        assert [r["name"] for r in rows(connection, "SELECT name FROM arrays ORDER BY id")] == [
            "t-{index}",
            "chosen",
        ]


def test_an_array_with_files_or_words_is_filled_in_at_once(
    bench: Workbench, tmp_path: Path
) -> None:
    bench.pool()
    for name in "ab":
        (tmp_path / f"{name}.in").write_text(name)
    (tmp_path / "0.in").write_text("zero")
    with bench.client() as client:
        spec = JobSpec(["cat", "{index}"], inputs=[(f"{tmp_path}/{{index}}.in", "{index}")])
        jobs = client.submit_array(spec, ["a", "b", 0], pool="herd")
        with pytest.raises(BadInput, match="'a' is there twice"):
            client.submit_array(spec, ["a", "a"], pool="herd")
        with pytest.raises(BadInput, match="whole number"):
            client.submit_array(spec, 0, pool="herd")
        with pytest.raises(BadInput, match="index"):
            client.submit_array(spec, [1.5], pool="herd")  # type: ignore[list-item]
        assert [job.index for job in jobs] == [None, None, 0]
    found = [_spec_of(bench, job.id) for job in jobs]
    assert [spec["command"] for spec in found] == [["cat", "a"], ["cat", "b"], ["cat", "0"]]
    assert found[0]["environment"] == {"REMUDA_ARRAY_INDEX": "a"}
    inputs = found[2]["inputs"]
    assert bench.storage.read(inputs[0]["url"]) == b"zero"


def test_a_literal_index_outside_of_arrays_stays(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["echo", "{index}"]), pool="herd")
        [other] = client.submit_many([JobSpec(["echo", "{index}"])], pool="herd")
        assert (job.index, other.index) == (None, None)


@pytest.mark.parametrize(
    ("fields", "spec", "limit"),
    [
        ({}, {"cores": 3}, r"asks for 3 cores, a VM of pool herd has 2 \(slots_per_vm\)"),
        (
            {"memory_bytes_per_vm": 1 << 30},
            {"memory_bytes": 2 << 30},
            r"bytes of memory, .* \(memory_bytes_per_vm\)",
        ),
        ({"instance_count": 0}, {}, r"at most 0 slots \(instance_count\)"),
        (
            {"is_elastic": True, "elastic_maximum_slots": 1},
            {"cores": 2},
            r"at most 1 slots \(maximum_total_slots\)",
        ),
    ],
)
def test_what_can_never_run_is_refused_naming_the_limit(
    bench: Workbench, fields: dict[str, Any], spec: dict[str, Any], limit: str
) -> None:
    bench.pool(vms=0, **fields)
    wanted = JobSpec(["true"], **spec)
    with bench.client() as client:
        for submit in (
            lambda: client.submit(wanted, pool="herd"),
            lambda: client.submit_many([wanted], pool="herd"),
            lambda: client.submit_array(wanted, 3, pool="herd"),
        ):
            with pytest.raises(NoResources, match=limit):
                submit()
        assert _count(bench) == 0
        job = client.submit(wanted, pool="herd", allow_pending=True)
        assert "never" in client.explain(job)[0]


def test_memory_beyond_this_machine_is_refused_where_it_is_the_machine(
    tmp_path: Path,
) -> None:
    from remuda.client.fitting import never_fits

    pool = {
        "name": "p",
        "slots_per_vm": 1,
        "memory_bytes_per_vm": None,
        "is_elastic": False,
        "instance_count": 1,
    }
    job = {"cores": 1, "memory_bytes": 1 << 50}
    assert never_fits(job, pool, memory_bytes=None) is None
    assert "memory" in str(never_fits(job, pool, memory_bytes=1 << 40))


def test_pools_that_take_no_jobs(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        with pytest.raises(UnknownPool, match="herd"):
            client.submit(JobSpec(["true"]), pool="nowhere")
        new = client.create_pool("new")
        waiting = client.submit(JobSpec(["true"]), pool=new)
        assert "not submitted" in client.explain(waiting)[0]
        client.pool("herd").close()
        with pytest.raises(Refused, match="CLOSING"):
            client.submit(JobSpec(["true"]), pool="herd")
        with pytest.raises(BadInput, match="by its name"):
            client.submit(JobSpec(["true"]), pool=5)  # type: ignore[arg-type]


def test_without_a_pool_there_is_a_default(bench: Workbench) -> None:
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]))
        pool = client.pool("default")
        assert (job.pool, pool.state, pool.is_elastic) == ("default", "SUBMITTED", True)
        assert pool.slots_per_vm == os.cpu_count()
        pool.close(now=True)
        with pytest.raises(Refused):
            client.submit(JobSpec(["true"]))
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE pools SET state = 'CLOSED', ended_at = now()"))
        assert client.submit(JobSpec(["true"])).info()["pool_id"] != pool.id


def test_many_clients_make_one_default_pool(bench: Workbench) -> None:
    jobs: list[int] = []

    def submit() -> None:
        with bench.client() as client:
            jobs.append(client.submit(JobSpec(["true"])).id)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(jobs)) == 4
    assert _count(bench, "pools") == 1


def test_a_key_gives_the_first_job_whatever_happened_since(
    bench: Workbench, tmp_path: Path
) -> None:
    bench.pool()
    source = tmp_path / "in"
    source.write_text("x")

    def spec(key: str) -> JobSpec:
        return JobSpec(["cat", "in"], inputs=[(source, "in")], idempotency_key=key)

    with bench.client() as client:
        first = client.submit(spec("a"), pool="herd")
        assert client.submit(spec("a"), pool="herd") == first
        many = client.submit_many([spec("a"), spec("b"), spec("b")], pool="herd")
        assert many[0] == first
        assert many[1] == many[2]
        source.unlink()
        client.pool("herd").close()
        assert client.submit(spec("a"), pool="herd") == first
        assert client.submit_many([spec("b"), spec("a")], pool="herd") == [many[1], first]
        with pytest.raises(Refused):
            client.submit(spec("c"), pool="herd")
    assert _count(bench) == 2


def test_the_key_of_an_array_is_each_jobs_own(bench: Workbench) -> None:
    bench.pool()
    spec = JobSpec(["true"], idempotency_key="nightly")
    with bench.client() as client:
        first = client.submit_array(spec, 3, pool="herd")
        again = client.submit_array(spec, 5, pool="herd")
        assert again[:3] == first
        assert len(set(again)) == 5
        with Client(bench.settings, owner="bob") as other:
            assert not set(other.submit_array(spec, 3, pool="herd")) & set(first)


def test_what_is_no_session_is_refused(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        with pytest.raises(BadInput, match="session"):
            client.submit(JobSpec(["true"]), pool="herd", session=5)  # type: ignore[arg-type]
        assert _count(bench) == 0
