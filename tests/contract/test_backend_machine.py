"""A backend against the model, whatever is asked of it in whatever order, and whatever breaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from remuda.errors import VmUnreachable
from remuda.testing import Act, Faults, Place, Site, world
from remuda.workers.backends.base import StartJob
from tests.contract.model import Model, Try
from tests.contract.places import local_place, noop_place

GAP = 1 << 20  # what a new runner's numbers begin after
cores = st.integers(1, 2)
picks = st.lists(st.integers(0, 40), min_size=1, max_size=4)


class BackendMachine(RuleBasedStateMachine):
    """Drives the backend of `place` and a model side by side."""

    place: Place

    @initialize()
    def begin(self) -> None:
        """Meet the VM as another machine may have left it, but for its running jobs."""
        self.site = Site(self.place)
        self.site.jobs.append(self.site.job().attempt_id)
        self.channel = self.site.connect()
        self.model = Model()
        self.jobs: dict[int, StartJob] = {}
        self.lives = [self.site.since]  # the number each life of the runner begins after

    def teardown(self) -> None:
        """Leave nothing running."""
        if hasattr(self, "site"):
            self.channel.close()
            self.site.tidy()

    def new(self, cores: int, **fields: Any) -> StartJob:
        """Return an attempt nobody has seen, that runs until it is told to end."""
        job = self.site.job(Act(sleep_s=1000), cores=cores, **fields)
        self.jobs[job.attempt_id] = job
        return job

    def tries(self, jobs: list[StartJob]) -> list[Try]:
        """Return what the model calls these."""
        return [Try(job.attempt_id, job.job_id, job.epoch, job.cores) for job in jobs]

    def pick(self, picks: list[int]) -> list[StartJob]:
        """Return some of the attempts there are, known to the VM or not."""
        every = list(self.jobs.values())
        return [every[n % len(every)] for n in picks] if every else []

    def settle(self) -> None:
        """Let the model go on, and wait until the VM has."""
        self.model.settle()
        for one in self.model.known.values():
            if one.why:
                assert self.site.exit(self.jobs[one.a])["why"] == one.why
            elif one.state == "running":
                self.site.start(self.jobs[one.a])

    def submit(self, jobs: list[StartJob], floor: int = 0) -> None:
        """Submit to both; what is said of new ones is what they are before anything starts."""
        expected = self.model.start(self.tries(jobs), floor)
        got = self.site.backend.submit_jobs(self.channel, self.site.vm, jobs, floor=floor)
        assert got.keys() == expected.keys()
        for a, state in got.items():
            ending = self.model.known[a].why if a in self.model.known else ""
            if state != expected[a]:
                below = a < self.model.floor and expected[a] == "exited" and state == "stale"
                assert below or (ending and state == "running")
        self.settle()

    # ---- rules

    @rule(wanted=st.lists(cores, min_size=1, max_size=3))
    def submit_new(self, wanted: list[int]) -> None:
        self.submit([self.new(n) for n in wanted])

    @rule(picks=picks)
    def submit_again(self, picks: list[int]) -> None:
        self.submit(self.pick(picks))

    @rule(pick=st.integers(0, 40), cores=cores, step=st.integers(-1, 1))
    def submit_another_try(self, pick: int, cores: int, step: int) -> None:
        for job in self.pick([pick]):
            self.submit([self.new(cores, job_id=job.job_id, epoch=max(1, job.epoch + step))])

    @rule(cores=cores)
    def raise_the_floor(self, cores: int) -> None:
        below, above = self.new(cores), self.new(cores)
        self.submit([above, below], floor=above.attempt_id)

    @rule(picks=picks)
    def recall(self, picks: list[int]) -> None:
        ids = [job.attempt_id for job in self.pick(picks)]
        expected = self.model.recall(ids)
        assert self.site.backend.recall_jobs(self.channel, self.site.vm, ids) == expected
        self.settle()

    @rule(picks=picks)
    def cancel(self, picks: list[int]) -> None:
        ids = [job.attempt_id for job in self.pick(picks)]
        expected = self.model.cancel(ids)
        got = self.site.backend.cancel_jobs(self.channel, self.site.vm, ids, grace_s=0)
        assert set(expected) <= set(got) <= {*expected, *self.model.forgettable(ids)}
        self.settle()

    @rule(pick=st.integers(0, 40))
    def finish(self, pick: int) -> None:
        running = self.model.of("running")
        if running:
            one = running[pick % len(running)]
            self.channel.request("signal", a=one.a, signal=12)
            self.model.end(one, "SIGNALLED")
            self.settle()

    @rule(picks=picks)
    def free(self, picks: list[int]) -> None:
        ids = [job.attempt_id for job in self.pick(picks)]
        live = {one.a for one in self.model.of("queued", "running")}
        self.site.backend.free(self.channel, self.site.vm, ids)
        self.model.free([a for a in ids if a not in live])

    @rule()
    def drop_the_channel(self) -> None:
        self.channel.close()
        self.reconnect()

    def reconnect(self) -> None:
        """Be the watcher again, from the last entry heard on."""
        assert self.site.closed.wait(20)
        self.channel = self.site.connect(since=max(self.site.entries, default=self.site.since))

    @rule()
    def kill_the_runner(self) -> None:
        self.place.kill_runner(self.channel)
        assert self.site.closed.wait(20)
        self.site.backend.revive(self.site.vm)
        self.model.kill()
        newest = max(self.lives[-1], *self.site.entries, 0)
        self.lives.append(newest + GAP if newest else 0)
        self.reconnect()
        self.settle()

    # ---- what always holds

    @invariant()
    def the_vm_agrees(self) -> None:
        if hasattr(self, "model"):
            status = self.channel.request("status")
            ours = set(self.jobs)
            assert set(status["queued"]) & ours == {t.a for t in self.model.of("queued")}
            assert {a for a, _ in status["running"]} & ours == {
                t.a for t in self.model.of("running")
            }
            ended = {t.a for t in self.model.of("exited")}
            kept = {a for a in ended if a >= self.model.floor}
            assert kept <= set(status["exited"]) & ours <= ended

    @invariant()
    def nothing_starts_or_ends_twice(self) -> None:
        if hasattr(self, "model"):
            entries = [entry for _, entry in sorted(self.site.entries.items())]
            for kind in ("start", "exit"):
                seen = [entry["a"] for entry in entries if entry["t"] == kind]
                assert len(seen) == len(set(seen))
            running: dict[int, int] = {}  # by job
            for entry in entries:
                job = self.jobs[entry["a"]].job_id
                if entry["t"] == "start":
                    assert job not in running
                    running[job] = entry["a"]
                elif running.get(job) == entry["a"]:
                    del running[job]

    @invariant()
    def entries_have_no_gaps(self) -> None:
        if hasattr(self, "model"):
            before = self.site.since
            for number in sorted(self.site.entries):
                assert number == before + 1 or (before < number and number - 1 in self.lives)
                before = number


class NoopMachine(BackendMachine):
    """With what can be broken at will: the same must hold."""

    @rule(wanted=st.lists(cores, min_size=1, max_size=3), done=st.booleans())
    def submit_while_the_line_breaks(self, wanted: list[int], done: bool) -> None:
        """Nobody knows whether it was done; asking again settles it."""
        faults = world().machine(str(self.place.vm.address["noop"])).faults
        setattr(faults, "cut_answers" if done else "cut_requests", 1)
        jobs = [self.new(n) for n in wanted]
        with pytest.raises(VmUnreachable):
            self.site.backend.submit_jobs(self.channel, self.site.vm, jobs, floor=0)
        if done:
            self.model.start(self.tries(jobs), 0)
            self.model.settle()
        self.reconnect()
        self.submit(jobs)


def as_machine(kind: type[BackendMachine], place: Place) -> type[BackendMachine]:
    """Return the machine for one place."""
    return type(kind.__name__, (kind,), {"place": place})


@pytest.fixture
def local_vm(tmp_path: Path) -> Iterator[Place]:
    with local_place(tmp_path) as place:
        yield place


def how(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_the_noop_backend_and_its_model(seed: int) -> None:
    with noop_place(Faults(seed=seed, duplicate_rate=0.3 * (seed - 1))) as place:
        run_machine(as_machine(NoopMachine, place), settings=how(120, 40))


def test_the_local_backend_and_its_model(local_vm: Place) -> None:
    run_machine(as_machine(BackendMachine, local_vm), settings=how(10, 20))
