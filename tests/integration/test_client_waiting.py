"""Waiting: pushed, in the order of the ends, through outages; and what a result brings."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event, text

from remuda import (
    AlreadyExists,
    BadInput,
    DataStagingError,
    JobFailed,
    JobSpec,
    Output,
    OutputNotAvailable,
    RemudaError,
    UnknownJob,
    WaitTimeout,
)
from remuda.client import waiting
from tests.integration.workbench import Workbench

TRUE = JobSpec(["true"])
NEVER_S = 3600.0


def _in_background(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


@pytest.fixture
def pushed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the safety poll away: what arrives was pushed."""
    monkeypatch.setattr(waiting, "_POLL_S", NEVER_S)


def _is_listening(bench: Workbench) -> bool:
    with bench.engine.connect() as connection:
        return bool(
            connection.scalar(
                text(
                    """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                       AND application_name = 'remuda listener' AND query LIKE 'LISTEN%'"""
                )
            )
        )


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.01)


@pytest.mark.usefixtures("pushed_only")
def test_a_result_is_pushed(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        for _ in range(3):  # the first starts the listener, the others use it
            job = client.submit(TRUE, pool="herd")
            ender = _in_background(lambda job=job: bench.end(job.id, stdout=b"hello\n"))  # type: ignore[misc]
            result = job.result(timeout_s=20)
            ender.join()
            assert (result.exit_code, result.reason, result.stdout) == (0, "OK", b"hello\n")
            assert result.usage.wall_s == 1.0
            assert (job.state, job.done, job.attempts) == ("TERMINATED", True, 1)


def test_what_ended_before_is_known_at_once(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        jobs = [client.submit(TRUE, pool="herd") for _ in range(2)]
        bench.end(jobs[0].id, stderr=b"\xff\x00")
        assert jobs[0].result(timeout_s=5).stderr == b"\xff\x00"
        bench.end(jobs[1].id)
        assert client.job(jobs[1].id).result(timeout_s=5).stdout == b""


@pytest.mark.usefixtures("pushed_only")
def test_ends_come_in_their_order(bench: Workbench) -> None:
    bench.pool(vms=2, slots_per_vm=50)
    with bench.client() as client:
        jobs = client.submit_many([TRUE] * 20, pool="herd")
        bench.place()
        order = [job.id for job in jobs[10:] + jobs[:10]]

        def end_all() -> None:
            for job_id in order:
                bench.end(job_id)

        ender = _in_background(end_all)
        seen = [job.id for job in client.as_completed(jobs, timeout_s=20)]
        ender.join()
        assert seen == order
        again = [job.id for job in client.as_completed(jobs)]
        assert again == order


@pytest.mark.usefixtures("pushed_only")
def test_rows_are_read_many_at_a_time_and_results_cost_no_query(bench: Workbench) -> None:
    bench.pool(slots_per_vm=1000)
    with bench.client() as client:
        jobs = client.submit_many([TRUE] * 500, pool="herd")
        bench.end(*(job.id for job in jobs), stdout=b"x" * 100)
        statements: list[str] = []
        engine = client._context._engine

        def note(*arguments: object) -> None:
            statements.append(str(arguments[2]))

        event.listen(engine, "before_cursor_execute", note)
        results = [job.result() for job in client.as_completed(jobs)]
        assert all(result.stdout == b"x" * 100 for result in results)
        assert all(job.name == "" and job.exit_code == 0 for job in jobs)
        # The first wait starts the listener, which may look at them too.
        assert len(statements) <= 3, statements
        statements.clear()
        assert [job.result() for job in jobs] == results
        assert not statements


def test_large_streams_are_fetched_when_asked_for(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        inline, stored = (client.submit(TRUE, pool="herd") for _ in range(2))
        bench.end(inline.id, stdout=bytes(range(256)) * 100)
        bench.end(stored.id, stored_stdout=b"y" * 3_000_000)
        assert inline.result(5).stdout == bytes(range(256)) * 100
        assert stored.result(5).stdout == b"y" * 3_000_000
        assert client.job(stored.id).stdout[-5:] == b"yyyyy"


def test_a_failure_tells_all(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["false"], name="tile-3"), pool="herd")
        bench.lose(job.id)
        bench.end(
            job.id, exit_code=3, reason="NONZERO", stderr=b"x" * 5000 + b"\nwhy: no \xff disk\n\n"
        )
        with pytest.raises(JobFailed) as caught:
            job.result(5)
        failure = caught.value
        assert (failure.job_id, failure.exit_code, failure.signal) == (job.id, 3, None)
        assert (failure.reason, failure.attempt) == ("NONZERO", 2)
        assert failure.stderr_tail.endswith("disk\n\n")
        assert len(failure.stderr_tail) <= 2048
        assert "'tile-3' failed with exit code 3: why: no" in str(failure)
        with pytest.raises(JobFailed):
            job.result()

        signalled = client.submit(TRUE, pool="herd")
        bench.end(signalled.id, exit_code=None, signal=9, reason="SIGNALLED")
        with pytest.raises(JobFailed, match="signal 9"):
            signalled.result(5)

        cancelled = client.submit(TRUE, pool="herd")
        assert client.cancel(cancelled) == 1
        assert client.cancel([cancelled]) == 0
        assert not cancelled.cancel()
        with pytest.raises(JobFailed, match="cancelled") as caught:
            cancelled.result(5)
        assert caught.value.attempt == 0
        assert cancelled.reason == "CANCELLED"


def test_not_in_time(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        jobs = client.submit_many([TRUE] * 3, pool="herd")
        bench.end(jobs[1].id)
        seen = client.as_completed(jobs, timeout_s=1.5)
        assert next(seen) == jobs[1]
        with pytest.raises(WaitTimeout, match="2 jobs"):
            next(seen)
        with pytest.raises(TimeoutError):
            client.wait(jobs, timeout_s=0)
        with pytest.raises(OutputNotAvailable, match="SUBMITTED"):
            _ = jobs[0].stdout
        bench.end(jobs[0].id, jobs[2].id)
        assert client.wait(iter(jobs), timeout_s=20) == jobs


def test_what_cannot_be_waited_for(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        with pytest.raises(UnknownJob, match="no job 99"):
            client.job(99)
        with pytest.raises(BadInput):
            client.job("1")  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="jobs"):
            client.wait([1])  # type: ignore[list-item]
        assert client.wait([]) == []
        assert list(client.as_completed(iter(()))) == []


def test_the_same_job_twice_and_from_many_threads(bench: Workbench) -> None:
    bench.pool(slots_per_vm=30)
    with bench.client() as client:
        jobs = client.submit_many([TRUE] * 30, pool="herd")
        twins = [client.job(job.id) for job in jobs]
        bench.place()
        codes: list[int | None] = []
        threads = [
            _in_background(lambda job=job: codes.append(job.result(20).exit_code))  # type: ignore[misc]
            for job in jobs + twins
        ]
        bench.end(*(job.id for job in jobs))
        for thread in threads:
            thread.join(timeout=20)
        assert codes == [0] * 60
        assert len(list(client.as_completed(jobs + twins))) == 60


@pytest.mark.usefixtures("pushed_only")
def test_an_end_during_an_outage_is_found(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(TRUE, pool="herd")
        done: list[str] = []
        waiter = _in_background(lambda: done.append(job.result(20).reason))
        _until(lambda: _is_listening(bench))
        with bench.engine.connect() as connection:
            connection.execute(
                text(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()"""
                )
            )
        bench.end(job.id)
        waiter.join(timeout=20)
        assert done == ["OK"]


def test_a_lost_notification_costs_only_time(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_POLL_S", 0.1)
    monkeypatch.setattr(waiting.WaitingRoom, "_ended", lambda self, notes: [])
    bench.pool()
    with bench.client() as client:
        job = client.submit(TRUE, pool="herd")
        done: list[str] = []
        waiter = _in_background(lambda: done.append(job.result(20).reason))
        _until(lambda: _is_listening(bench))
        bench.end(job.id)
        waiter.join(timeout=20)
        assert done == ["OK"]


def test_closing_ends_the_waits_and_the_connections(bench: Workbench) -> None:
    bench.pool()
    client = bench.client().__enter__()
    job = client.submit(TRUE, pool="herd")
    errors: list[Exception] = []

    def wait() -> None:
        try:
            job.wait(20)
        except RemudaError as error:
            errors.append(error)

    waiter = _in_background(wait)
    _until(lambda: _is_listening(bench))
    client.close()
    waiter.join(timeout=20)
    assert "closed" in str(errors[0])
    _until(lambda: not _is_listening(bench))
    bench.end(job.id)
    assert job.result(20).exit_code == 0
    client.close()


def _in_child(client: object, job_id: int, codes: object) -> None:
    codes.put(client.job(job_id).result(20).exit_code)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        first, second = (client.submit(TRUE, pool="herd") for _ in range(2))
        bench.end(first.id)
        first.result(20)
        fork = multiprocessing.get_context("fork")
        codes = fork.Queue()
        child = fork.Process(target=_in_child, args=(client, second.id, codes))
        child.start()
        bench.end(second.id)
        assert codes.get(timeout=20) == 0
        child.join(timeout=20)
        assert second.result(20).exit_code == 0


def test_outputs_land_in_the_output_dir(bench: Workbench, tmp_path: Path) -> None:
    bench.pool()
    results = tmp_path / "results {index}"
    spec = JobSpec(
        ["true"],
        outputs=["a/b.csv", ("log", "logs/{index}.log"), Output("extra", optional=True)],
        output_dir=results,
    )
    with bench.client() as client:
        [job] = client.submit_array(spec, [7], pool="herd")
        home = tmp_path / "results 7"
        home.mkdir()
        (home / "logs").mkdir()
        (home / "logs" / "7.log").write_text("from an earlier run")
        bench.end(job.id, files={"a/b.csv": b"1,2", "log": b"new"})
        outputs = job.result(20).outputs
        assert outputs == {"a/b.csv": home / "a" / "b.csv", "log": home / "logs" / "7.log"}
        assert outputs["a/b.csv"].read_bytes() == b"1,2"
        assert outputs["log"].read_bytes() == b"new"
        copies = job.results(tmp_path / "copies")
        assert copies["log"].read_bytes() == b"new"
        with pytest.raises(AlreadyExists, match="already there"):
            job.results(tmp_path / "copies")
        assert job.results(tmp_path / "copies", overwrite=True) == copies


def test_a_link_does_not_lead_out_of_the_output_dir(bench: Workbench, tmp_path: Path) -> None:
    bench.pool()
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (inside / "sub").symlink_to(outside)
    with bench.client() as client:
        job = client.submit(JobSpec(["true"], outputs=["sub/file"], output_dir=inside), pool="herd")
        bench.end(job.id, files={"sub/file": b"x"})
        with pytest.raises(DataStagingError, match="outside"):
            job.result(20)
        assert not list(outside.iterdir())


def test_without_an_output_dir_files_are_where_the_storage_has_them(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["true"], outputs=["out"]), pool="herd")
        bench.end(job.id, files={"out": b"data"})
        [path] = job.result(20).outputs.values()
        assert path.read_bytes() == b"data"
        assert bench.settings.data_dir in path.parents


def test_outputs_of_a_failed_job_can_be_had(bench: Workbench, tmp_path: Path) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["true"], outputs=["core"]), pool="herd")
        with pytest.raises(OutputNotAvailable):
            job.results(tmp_path)
        bench.end(job.id, files={"core": b"dump"}, exit_code=1, reason="NONZERO")
        assert job.results(tmp_path)["core"].read_bytes() == b"dump"
