"""Calls between clients and workers: claimed once, answered once, expired; states recorded."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from remuda import JobSpec
from remuda.client import Job, calls
from remuda.client.calls import Line
from remuda.errors import OutputNotAvailable, Refused, UnknownJob, VmUnreachable
from remuda.models import calls as models
from remuda.models import exits, outputs, upkeep
from remuda.models.database import rows
from tests.integration.builders import (
    assert_chains,
    dispatch,
    ended,
    make_jobs,
    make_pool,
    make_vms,
    path,
    record,
)
from tests.integration.workbench import Workbench


class Replier:
    """A worker's part in a thread: answers what comes as `reply` says."""

    def __init__(self, bench: Workbench, reply: Any) -> None:
        self._bench, self._reply = bench, reply
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.asked: list[dict[str, Any]] = []

    def __enter__(self) -> Replier:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=20)

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            with self._bench.engine.begin() as connection:
                claimed = models.claim(connection, "w")
                models.answer(connection, [self._reply(call) for call in claimed])
            self.asked += claimed


def ask(connection: Connection, *jobs: int, verb: str = "files", ttl_s: float = 60) -> list[int]:
    return sorted(models.ask(connection, verb, jobs, {}, ttl_s=ttl_s))


def running(bench: Workbench, job: Job) -> tuple[int, int]:
    attempt = bench.start(job.id)
    return attempt, bench.live(job.id)[1]


def state(engine: Engine, job: int) -> tuple[str, bool]:
    with engine.connect() as connection:
        (row,) = rows(connection, "SELECT state, held FROM jobs WHERE id = :id", id=job)
    return row["state"], row["held"]


def test_a_call_is_claimed_by_one_worker_and_again_when_that_died(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]), pool="herd")
        running(bench, job)
    with bench.engine.begin() as connection:
        made = ask(connection, job.id, job.id)
    with bench.engine.begin() as one, bench.engine.begin() as two:
        assert [call["id"] for call in models.claim(one, "one", most=1)] == made[:1]
        assert [call["id"] for call in models.claim(two, "two")] == made[1:]
        assert models.claim(two, "two") == []
    with bench.engine.begin() as connection:
        assert models.claim(connection, "three") == []
        models.release(connection, made[1:])
        assert [call["again"] for call in models.claim(connection, "three")] == [False]
        connection.execute(text("UPDATE calls SET claimed_at = now() - interval '1 minute'"))
        assert [call["again"] for call in models.claim(connection, "three")] == [True, True]


def test_the_watcher_of_the_vm_comes_first(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]), pool="herd")
        _, vm = running(bench, job)
    watch = "UPDATE vms SET watcher = 'one', watch_expires_at = now() + interval '1 hour'"
    with bench.engine.begin() as connection:
        connection.execute(text(watch))
        (made,) = ask(connection, job.id)
        assert models.claim(connection, "two") == []
        assert [call["vm_id"] for call in models.claim(connection, "one")] == [vm]
        models.release(connection, [made])
        connection.execute(text("UPDATE calls SET created_at = now() - interval '1 second'"))
        assert [call["id"] for call in models.claim(connection, "two")] == [made]


def test_an_answer_is_written_once_and_expired_calls_go(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]), pool="herd")
        running(bench, job)
    with bench.engine.begin() as connection:
        one, two = ask(connection, job.id, job.id)
        models.answer(connection, [models.Answer(one, {"n": 1})])
        models.answer(connection, [models.Answer(one, {"n": 2})])
        error = Refused("no\0t\udc80", hint="so")
        models.answer(connection, [models.Answer(two, error=error)])
        found = {row["id"]: row for row in models.answers(connection, [one, two])}
        assert found[one]["answer"] == {"n": 1}
        assert found[two]["error"] == {"kind": "Refused", "message": "not?", "hint": "so"}
        assert models.claim(connection, "w") == []
        (late,) = ask(connection, job.id, ttl_s=-60)
        assert models.claim(connection, "w") == []
        upkeep.expire(connection, heartbeat_retention_s=1e6, event_retention_s=1e6)
        left = [row["id"] for row in rows(connection, "SELECT id FROM calls ORDER BY id")]
        assert (left, late in left) == ([one, two], False)


def test_clients_get_answers_and_the_workers_errors(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]), pool="herd")
        running(bench, job)

        def reply(call: dict[str, Any]) -> models.Answer:
            if call["verb"] == "signal":
                return models.Answer(call["id"], error=VmUnreachable("away", hint="wait"))
            return models.Answer(call["id"], {"files": [["b", 2, 0o600, 5.0], ["a", 1, 0o644, 6]]})

        with Replier(bench, reply) as replier:
            assert [(f.name, f.mode) for f in job.files()] == [("a", 0o644), ("b", 0o600)]
            with pytest.raises(VmUnreachable, match="away") as caught:
                job.send_signal(10)
        assert caught.value.hint == "wait"
        assert [call["verb"] for call in replier.asked] == ["files", "signal"]
        with Line(client._context) as line, pytest.raises(VmUnreachable, match="no worker"):
            line.ask("files", job.id, timeout_s=0.1)
        with bench.engine.begin() as connection:
            assert rows(connection, "SELECT * FROM calls") == []


def test_a_call_that_was_taken_up_and_not_answered_says_so(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.pool()
    monkeypatch.setattr(calls, "_AGAIN_S", 0.05)
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]), pool="herd")
        running(bench, job)
        with Replier(bench, lambda call: models.Answer(0, {})), Line(client._context) as line:
            for timeout_s in (0.4, 1.0, 5.0, 20.0):  # a busy machine may not take it up in 0.4 s
                with pytest.raises(VmUnreachable) as told:
                    line.ask("signal", job.id, timeout_s=timeout_s, signal=10)
                if "no worker" not in str(told.value):
                    break
        assert "unknown whether it did" in str(told.value)


def test_what_cannot_be_is_refused_before_anybody_is_asked(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]), pool="herd", allow_pending=True)
        with pytest.raises(Refused, match=f"job {job.id} is NEW"):
            job.send_signal("USR1")
        with pytest.raises(OutputNotAvailable, match=f"job {job.id} is NEW"):
            job.peek("stdout")
        job.cancel()
        for refused in (job.suspend, job.resume, lambda: job.send_signal(1)):
            with pytest.raises(Refused, match="TERMINATED"):
                refused()
        with pytest.raises(UnknownJob), Line(client._context) as line:
            line.ask("files", 999)
        assert client.suspend([job]) == 0
        with bench.engine.begin() as connection:
            assert rows(connection, "SELECT * FROM calls") == []


@pytest.mark.parametrize("verb", ["suspend", "resume", "extend", "signal", "peek", "files"])
def test_refusals_by_state(verb: str) -> None:
    looks, late = verb in ("peek", "files"), ("COLLECTED", "LOST", "CANCELLED", "FAILED")
    assert models.refusal(verb, 1, "RUNNING", "STARTED") is None
    assert (models.refusal(verb, 1, "TERMINATING", "EXITED") is None) == looks
    placed = models.refusal(verb, 1, "SUBMITTED", "PLACED")
    assert (placed is None) == (verb in ("suspend", "resume", "extend"))
    for attempt in (None, *late):
        error = models.refusal(verb, 1, "TERMINATED", attempt)
        assert isinstance(error, OutputNotAvailable if looks else Refused)
        assert "TERMINATED" in str(error)


def test_suspended_and_running_are_recorded_with_their_events(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]), pool="herd")
        attempt, vm = running(bench, job)
        with bench.engine.begin() as connection:
            assert models.stopped_on(connection, vm) == {attempt: False}
            assert models.record_suspended(connection, vm, {attempt: True}) == [job.id]
            assert models.record_suspended(connection, vm, {attempt: True}) == []
            assert models.record_suspended(connection, vm + 1, {attempt: False}) == []
            assert models.stopped_on(connection, vm) == {attempt: True}
        assert job.refresh().state == "STOPPED"
        with bench.engine.begin() as connection:
            assert models.record_suspended(connection, vm, {attempt: False}) == [job.id]
        bench.end(job.id)
        with bench.engine.begin() as connection:
            assert models.record_suspended(connection, vm, {attempt: True}) == []
        path = [e["to_state"] for e in client.job_history(job)["events"] if e["kind"] == "job"]
        assert path[2:] == ["RUNNING", "STOPPED", "RUNNING", "TERMINATING", "TERMINATED"]


@pytest.mark.parametrize("resumed", [False, True])
def test_suspended_before_the_start_is_recorded(bench: Workbench, resumed: bool) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]), pool="herd")
        attempt, vm = bench.live(job.id)
        with bench.engine.begin() as connection:
            models.record_suspended(connection, vm, {attempt: True})
            if resumed:
                models.record_suspended(connection, vm, {attempt: False})
            exits.record_starts(connection, vm, {attempt: 1.0})
        assert (job.refresh().state, job.started_at is None) == (
            "RUNNING" if resumed else "STOPPED",
            False,
        )
        bench.end(job.id)
        assert job.refresh().reason == "OK"


def test_a_suspended_job_that_is_lost_is_held(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job, other = client.submit_array(JobSpec(["true"]), 2, pool="herd")
        attempt, vm = running(bench, job)
        running(bench, other)
        with bench.engine.begin() as connection:
            models.record_suspended(connection, vm, {attempt: True})
        bench.lose(job.id)
        bench.lose(other.id)
        assert state(bench.engine, job.id) == ("NEW", True)
        assert state(bench.engine, other.id) == ("NEW", False)
        assert set(bench.place()) == {other.id}
        job.resume()
        assert set(bench.place()) == {job.id}


def test_fresh_offsets_move_for_one_of_many_readers(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["true"], retries=1), pool="herd")
        assert job.fresh_stdout() == b""
        bench.start(job.id)
        bench.lose(job.id)
        bench.end(job.id, stdout=b"second", stderr=b"err")
        with bench.engine.begin() as connection:
            move = {"old": (0, 0), "new": (2, 3)}
            assert outputs.move_offset(connection, job.id, "stdout", **move)
            assert not outputs.move_offset(connection, job.id, "stdout", **move)
            assert outputs.read_offset(connection, job.id, "stdout") == (2, 3)
        assert (job.fresh_stdout(), job.fresh_stdout()) == (b"ond", b"")
        assert (job.fresh_stderr(), job.fresh_stderr()) == (b"err", b"")


def test_resumed_before_its_start_was_recorded_it_can_end(engine: Engine) -> None:
    """The start comes with the end then; the chain of its events has each step once."""
    with engine.begin() as connection:
        pool = make_pool(connection)
        [vm] = make_vms(connection, pool)
        [job] = make_jobs(connection, pool)
        [placed] = dispatch(connection)
        for suspended in (True, False):
            assert models.record_suspended(connection, vm, {placed.attempt_id: suspended}) == [job]
        record(connection, vm, ended(placed.attempt_id))
        steps = "NEW SUBMITTED STOPPED RUNNING TERMINATING TERMINATED"
        assert path(connection, "job", job) == steps
        assert_chains(connection)
