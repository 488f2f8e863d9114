"""A Resource against a model of its accounts and its jobs, while lines break and runners die."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from remuda.errors import (
    MaximumCapacityReached,
    OutputNotAvailable,
    Refused,
    VmUnreachable,
)
from remuda.models.states import JobState, Reason
from remuda.spec import JobSpec
from remuda.testing import Act, Faults, Place, wait_until, world
from remuda.testing.resource_fixtures import resource_of
from remuda.workers.lrms.application import Application
from tests.contract.places import local_place, noop_place
from tests.contract.test_backend_machine import how

T = TypeVar("T")
pick = st.integers(0, 30)


def patiently(call: Callable[[], T]) -> T:
    """Repeat a call: on a line that has just broken it may fail, and may be done all the same."""
    for _ in range(20):
        try:
            return call()
        except VmUnreachable:
            continue
    raise AssertionError("the VM cannot be asked")


class ResourceMachine(RuleBasedStateMachine):
    """`taken` is who has slots, as the Resource should see it; `really` what runs on the VM."""

    place: Place

    @initialize()
    def begin(self) -> None:
        self.resource = resource_of(self.place)
        self.apps: list[Application] = []
        self.taken: set[int] = set()
        self.really: dict[int, str] = {}  # "running" or how it ended: a Reason

    def teardown(self) -> None:
        if hasattr(self, "resource"):
            self.look()
            for app in self.apps:
                self.resource.cancel_job(app, grace_s=0)
                self.resource.free(app)
            self.resource.get_resource_status()
            assert (self.resource.free_slots, self.resource.queued) == (2, 0)
            self.resource.close()

    def some(self, pick: int) -> list[Application]:
        return [self.apps[pick % len(self.apps)]] if self.apps else []

    def number(self, app: Application) -> int:
        return app.execution.attempt_id

    def free_slots(self) -> int:
        return 2 - sum(a.spec.cores for a in self.apps if self.number(a) in self.taken)

    def absorb(self) -> None:
        """Whatever asks the VM learns of every end."""
        self.taken = {a for a in self.taken if self.really.get(a) == "running"}

    # ---- rules

    @rule(cores=st.integers(1, 2))
    def submit(self, cores: int) -> None:
        app = Application(JobSpec(self.place.commands.write(Act(sleep_s=1000)), cores=cores))
        self.apps.append(app)
        self.submit_again(len(self.apps) - 1)

    @rule(pick=pick)
    def submit_again(self, pick: int) -> None:
        for app in self.some(pick):
            a = self.number(app)
            if app.execution.over:
                with pytest.raises(Refused):
                    self.resource.submit_job(app)
            elif a not in self.taken and app.spec.cores > self.free_slots():
                with pytest.raises(MaximumCapacityReached):
                    self.resource.submit_job(app)
            else:
                patiently(lambda app=app: self.resource.submit_job(app))  # type: ignore[misc]
                self.taken.add(a)
                self.really.setdefault(a, "running")
            if a not in self.really and not app.execution.over:
                assert app.execution.state == JobState.NEW

    @rule(pick=pick)
    def finish(self, pick: int) -> None:
        running = [a for a, end in self.really.items() if end == "running"]
        if running:
            a = running[pick % len(running)]
            channel = self.place.backend.connect(self.place.vm)
            channel.request("signal", a=a, signal=12)
            wait_until(lambda: a in channel.request("status")["exited"], "it has ended")
            channel.close()
            self.really[a] = Reason.SIGNALLED

    @rule()
    def update_all(self) -> None:
        for app in self.apps:
            patiently(lambda app=app: self.resource.update_job_state(app))  # type: ignore[misc]
        self.resource.update_job_states(self.apps)
        self.absorb()
        for app in self.apps:
            end = self.really.get(self.number(app))
            run = app.execution
            if end is None:
                assert run.state in (JobState.NEW, JobState.TERMINATED)
            elif end == "running":
                assert (run.state, run.reason) == (JobState.RUNNING, None)
            else:
                assert (run.over, run.reason) == (True, end)

    @rule(pick=pick)
    def cancel(self, pick: int) -> None:
        for app in self.some(pick):
            before = app.execution.reason
            patiently(lambda app=app: self.resource.cancel_job(app, grace_s=0))  # type: ignore[misc]
            a = self.number(app)
            if self.really.get(a) == "running":
                self.really[a] = Reason.CANCELLED
            self.taken.discard(a)
            expected = before or self.really.get(a, Reason.CANCELLED)
            assert (app.execution.over, app.execution.reason) == (True, expected)

    @rule(pick=pick)
    def free(self, pick: int) -> None:
        for app in self.some(pick):
            if not app.execution.over:
                with pytest.raises(Refused):
                    self.resource.free(app)
            else:
                patiently(lambda app=app: self.resource.free(app))  # type: ignore[misc]
                with pytest.raises(OutputNotAvailable):
                    self.resource.peek(app, "stdout", io.BytesIO())

    @rule()
    def look(self) -> None:
        assert patiently(self.resource.get_resource_status) is self.resource
        assert self.resource.updated
        self.absorb()
        assert self.resource.user_run == len(self.taken)
        assert self.resource.user_queued == 0

    @rule()
    def hang_up(self) -> None:
        self.resource.close()

    @rule()
    def kill_the_runner(self) -> None:
        channel = self.place.backend.connect(self.place.vm)
        self.place.kill_runner(channel)
        channel.close()
        lost = [a for a, end in self.really.items() if end == "running"]
        self.really.update(dict.fromkeys(lost, Reason.LOST))
        self.place.backend.revive(self.place.vm)

    # ---- what always holds

    @invariant()
    def the_accounts_are_exact(self) -> None:
        if hasattr(self, "resource"):
            resource = self.resource
            assert resource.free_slots == self.free_slots()
            assert resource.user_run + resource.user_queued == len(self.taken)


class NoopMachine(ResourceMachine):
    """With what can be broken at will."""

    @rule(name=st.sampled_from(["cut_answers", "cut_requests"]), pick=pick)
    def an_exchange_breaks(self, name: str, pick: int) -> None:
        """Whichever call meets it fails, and changes no job; repeated, it is done."""
        patiently(self.resource.get_resource_status)
        self.absorb()
        for app in self.some(pick):
            faults = world().machine(str(self.place.vm.address["noop"])).faults
            setattr(faults, name, 1)
            before = app.execution.state
            with contextlib.suppress(VmUnreachable):
                self.resource.update_job_state(app)
            if getattr(faults, name) == 0:
                assert app.execution.state == before
            setattr(faults, name, 0)

    @rule(cores=st.integers(1, 2), done=st.booleans())
    def an_acceptance_breaks(self, cores: int, done: bool) -> None:
        """Nobody knows whether the job was accepted: its slots are taken until it is known."""
        if cores > self.free_slots():
            return
        patiently(self.resource.get_resource_status)
        self.absorb()
        faults = world().machine(str(self.place.vm.address["noop"])).faults
        setattr(faults, "cut_answers" if done else "cut_requests", 1)
        app = Application(JobSpec(self.place.commands.write(Act(sleep_s=1000)), cores=cores))
        self.apps.append(app)
        with pytest.raises(VmUnreachable):
            self.resource.submit_job(app)
        assert (app.execution.state, app.execution.accepted) == (JobState.NEW, False)
        self.taken.add(self.number(app))
        self.the_accounts_are_exact()
        if done:
            self.really[self.number(app)] = "running"
        else:
            patiently(lambda: self.resource.update_job_state(app))
            self.absorb()
            assert app.execution.state == JobState.NEW


@pytest.fixture
def local_vm(tmp_path: Path) -> Iterator[Place]:
    with local_place(tmp_path) as place:
        yield place


def as_machine(kind: type[ResourceMachine], place: Place) -> type[ResourceMachine]:
    return type(kind.__name__, (kind,), {"place": place})


@pytest.mark.parametrize("seed", [1, 2])
def test_a_resource_over_noop_and_its_model(seed: int) -> None:
    with noop_place(Faults(seed=seed, duplicate_rate=0.3 * (seed - 1))) as place:
        run_machine(as_machine(NoopMachine, place), settings=how(60, 30))


def test_a_resource_over_local_and_its_model(local_vm: Place) -> None:
    run_machine(as_machine(ResourceMachine, local_vm), settings=how(8, 20))
