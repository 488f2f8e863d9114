"""Following: every byte of every attempt, once, in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from remuda import Client, JobSpec, UnknownJob
from remuda.client import following
from remuda.client.jobs import Job
from tests.integration.workbench import Workbench


class Follower:
    """Follows a job in a thread; `next` waits for what comes."""

    def __init__(self, job: Job) -> None:
        """Begin."""
        self.told: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(job,))
        self._thread.start()

    def _run(self, job: Job) -> None:
        try:
            for piece in job.follow():
                self.told.put(piece)
        finally:
            self.told.put(None)

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()

    def next(self) -> tuple[str, bytes] | None:
        """Return the next piece, None at the end."""
        return self.told.get(timeout=20)

    def rest(self) -> list[tuple[str, bytes]]:
        """Return all that is still to come."""
        found = []
        while (piece := self.next()) is not None:
            found.append(piece)
        return found


@contextmanager
def _followed(bench: Workbench, client: Client) -> Iterator[tuple[Job, int, Follower]]:
    job = client.submit(JobSpec(["true"], follow=True), pool="herd")
    attempt = bench.start(job.id)
    follower = Follower(job)
    yield job, attempt, follower
    follower.join()


@pytest.fixture(autouse=True)
def pushed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the safety poll away."""
    monkeypatch.setattr(following, "_POLL_S", 3600.0)


def test_output_comes_as_it_is_written_and_the_record_brings_the_rest(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client, _followed(bench, client) as (job, attempt, follower):
        bench.say(attempt, 0, b"one ")
        assert follower.next() == ("stdout", b"one ")
        bench.say(attempt, 4, b"two ")
        bench.say(attempt, 0, b"!", stream="stderr")
        told = [follower.next(), follower.next()]
        assert sorted(filter(None, told)) == [("stderr", b"!"), ("stdout", b"two ")]
        bench.end(job.id, stdout=b"one two three", stderr=b"!?")
        assert sorted(follower.rest()) == [("stderr", b"?"), ("stdout", b"three")]


def test_chunks_that_overlap_or_come_late_are_told_once(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client, _followed(bench, client) as (job, attempt, follower):
        bench.say(attempt, 6, b"gh")  # after a gap: kept until it is filled
        bench.say(attempt, 0, b"abc")
        assert follower.next() == ("stdout", b"abc")
        bench.say(attempt, 1, b"bcdef")
        assert [follower.next(), follower.next()] == [("stdout", b"def"), ("stdout", b"gh")]
        bench.say(attempt, 20, b"never reached")
        bench.end(job.id, stdout=b"abcdefgh")
        assert follower.rest() == []


def test_a_new_attempt_is_followed_from_its_beginning(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client, _followed(bench, client) as (job, attempt, follower):
        bench.say(attempt, 0, b"first")
        assert follower.next() == ("stdout", b"first")
        bench.say(attempt, 5, b" try")
        bench.lose(job.id)
        second = bench.start(job.id)
        bench.say(second, 0, b"second")
        assert [follower.next(), follower.next()] == [("stdout", b" try"), ("stdout", b"second")]
        bench.end(job.id, stdout=b"second try")
        assert follower.rest() == [("stdout", b" try")]


def test_a_job_that_has_ended_is_told_whole(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]), pool="herd")
        data = b"0123456789" * 300_000
        bench.end(job.id, stored_stdout=data, stderr=b"err")
        told = list(client.follow(job))
        assert b"".join(piece for stream, piece in told if stream == "stdout") == data
        assert ("stderr", b"err") in told
        quiet = client.submit(JobSpec(["true"]), pool="herd")
        bench.end(quiet.id)
        assert list(client.follow(quiet.id)) == []
        client.cancel(client.submit(JobSpec(["true"]), pool="herd"))


def test_a_waiting_job_is_followed_to_its_cancellation(bench: Workbench) -> None:
    bench.pool(vms=0)
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]), pool="herd")
        follower = Follower(job)
        job.cancel()
        assert follower.rest() == []
        with pytest.raises(UnknownJob):
            client.follow(999)


def test_following_asks_the_workers_for_the_output(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client:
        job = client.submit(JobSpec(["true"]), pool="herd")
        attempt = bench.start(job.id)
        follower = Follower(job)
        bench.say(attempt, 0, b"a")
        assert follower.next() == ("stdout", b"a")
        assert client.job(job.id).info()["follow"] is True
        bench.end(job.id, stdout=b"a")
        assert follower.rest() == []


def test_a_dropped_connection_loses_nothing(bench: Workbench) -> None:
    bench.pool()
    with bench.client() as client, _followed(bench, client) as (job, attempt, follower):
        bench.say(attempt, 0, b"a")
        assert follower.next() == ("stdout", b"a")
        with bench.engine.connect() as connection:
            connection.execute(
                text(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()"""
                )
            )
        bench.say(attempt, 1, b"b")
        assert follower.next() == ("stdout", b"b")
        bench.end(job.id, stdout=b"abc")
        assert follower.rest() == [("stdout", b"c")]
