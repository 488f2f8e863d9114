"""What a `Resource` does over any backend: the contract of GC3Pie's LRMS, without its traps.

    from remuda.testing import Place, ResourceContract

    class TestMine(ResourceContract):
        @pytest.fixture
        def place(self):
            ...  # as for BackendContract

Override `doomed` too if tests share the VM of `place`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remuda.errors import (
    AuthError,
    DataStagingError,
    MaximumCapacityReached,
    NoResources,
    OutputNotAvailable,
    Refused,
    ResourceNotReady,
    StaleHolder,
    VmUnreachable,
)
from remuda.models.states import JobState, Reason
from remuda.spec import JobSpec
from remuda.testing.commands import Act
from remuda.testing.place import Place, wait_until
from remuda.testing.resource_fixtures import LONG, Make, resource_of
from remuda.testing.results_contract import ResultsContract
from remuda.workers.lrms.application import Application
from remuda.workers.lrms.resource import Resource


class ResourceContract(ResultsContract):
    """The contract of `Resource`, on a real VM. Override `place`."""

    # ---- submitting, and what it takes

    def test_the_accounts_are_exact_at_every_step(
        self, place: Place, resource: Resource, make: Make
    ) -> None:
        one, wide, other = make(LONG), make(LONG, cores=2), make(LONG)
        assert self.figures(resource) == (2, 0, 0)
        resource.submit_job(one)
        assert one.execution.state == JobState.NEW
        assert resource.free_slots == 1
        assert resource.user_run + resource.user_queued == 1
        self.until(place, resource, one, JobState.RUNNING)
        assert self.figures(resource) == (1, 1, 0)
        for _ in range(2):
            with pytest.raises(MaximumCapacityReached, match="1 of 2"):
                resource.submit_job(wide)
        assert (self.figures(resource), wide.execution.state) == ((1, 1, 0), JobState.NEW)
        resource.submit_job(other)
        resource.submit_job(other)
        self.until(place, resource, other, JobState.RUNNING)
        assert self.figures(resource) == (0, 2, 0)
        for _ in range(2):
            resource.cancel_job(one)
            assert self.figures(resource) == (1, 1, 0)
        resource.cancel_job(other)
        assert self.figures(resource) == (2, 0, 0)
        resource.submit_job(wide)
        assert resource.free_slots == 0

    def test_what_can_never_run_is_told(self, resource: Resource, make: Make) -> None:
        never = [
            make(cores=3),
            make(memory_bytes=1 << 40),
            make(walltime_s=7200),
            make(architecture="vax"),
            make(gpus=1),
            make(constraints={"ssd": True}),
        ]
        for app in never:
            with pytest.raises(NoResources):
                resource.submit_job(app)
            assert app.execution.state == JobState.NEW
        assert self.figures(resource) == (2, 0, 0)

    def test_an_input_that_is_missing_is_told_before_anything_is_done(
        self, resource: Resource, make: Make, tmp_path: Path
    ) -> None:
        for local in (str(tmp_path / "none"), "/dev/null", str(tmp_path / "*.none")):
            app = make(inputs=[(local, "x")])
            with pytest.raises(DataStagingError):
                resource.submit_job(app)
            assert (app.execution.state, app.execution.accepted) == (JobState.NEW, False)
        assert self.figures(resource) == (2, 0, 0)

    def test_a_stale_attempt_is_refused(self, place: Place, resource: Resource, make: Make) -> None:
        first = make(LONG)
        second = first.again()
        resource.submit_job(second)
        with pytest.raises(StaleHolder):
            resource.submit_job(first)
        assert (first.execution.state, resource.free_slots) == (JobState.NEW, 1)
        resource.cancel_job(second)
        with pytest.raises(Refused):
            resource.submit_job(second)
        assert self.figures(resource) == (2, 0, 0)

    # ---- how jobs end

    def test_ends_are_told_apart(self, place: Place, resource: Resource, make: Make) -> None:
        cases = [
            (make(), Reason.OK, 0, None, 0),
            (make(Act(exit_code=200)), Reason.NONZERO, 200, None, 200 << 8),
            (make(Act(signal=12)), Reason.SIGNALLED, None, 12, 12),
            (make(LONG, walltime_s=1.0), Reason.WALLTIME, None, 15, 122),
            (make(outputs=["none"]), Reason.STAGING, 0, None, 123),
        ]
        for app, reason, code, signal, returncode in cases:
            assert app.execution.returncode is None
            self.run(place, resource, app)
            run = app.execution
            assert (run.reason, run.exit_code, run.signal) == (reason, code, signal)
            assert (run.returncode, run.state) == (returncode, JobState.TERMINATING)
        assert self.figures(resource) == (2, 0, 0)

    def test_many_are_updated_at_once(self, place: Place, resource: Resource, make: Make) -> None:
        running, done, new = make(LONG), make(), make()
        resource.submit_job(running)
        self.run(place, resource, done)
        self.until(place, resource, running, JobState.RUNNING)
        states = resource.update_job_states([running, done, new])
        assert states == [JobState.RUNNING, JobState.TERMINATING, JobState.NEW]

    def test_what_the_vm_does_not_know_is_lost(
        self, place: Place, resource: Resource, make: Make
    ) -> None:
        app = make()
        resource.submit_job(app)
        other = resource_of(place)
        copy = Application(app.spec)
        copy.execution = app.execution
        channel = place.backend.connect(place.vm)
        wait_until(
            lambda: app.execution.attempt_id in channel.request("status")["exited"],
            "it ends",
            patience_s=place.patience_s,
        )
        place.backend.free(channel, place.vm, [app.execution.attempt_id])
        channel.send("ack", n=channel.request("status")["n"])
        channel.request("status")
        channel.close()
        assert other.update_job_state(copy) == JobState.TERMINATED
        assert (copy.execution.reason, copy.execution.returncode) == (Reason.LOST, 120)
        with pytest.raises(OutputNotAvailable):
            other.get_results(copy, ".")
        other.close()

    def test_a_killed_runner_loses_its_jobs(self, doomed: Place) -> None:
        resource = resource_of(doomed)
        app = Application(JobSpec(doomed.commands.write(LONG)))
        resource.submit_job(app)
        self.until(doomed, resource, app, JobState.RUNNING)
        channel = doomed.backend.connect(doomed.vm)
        doomed.kill_runner(channel)
        self.ended_with_patience(doomed, resource, app)
        assert (app.execution.state, app.execution.reason) == (JobState.TERMINATED, Reason.LOST)
        assert self.figures(resource) == (2, 0, 0)
        resource.close()

    def ended_with_patience(self, place: Place, resource: Resource, app: Application) -> None:
        """Update until it has ended; a call on a channel that has just died may fail."""

        def ended() -> bool:
            try:
                resource.update_job_state(app)
            except VmUnreachable:
                return False
            return app.execution.over

        wait_until(ended, f"{app} ends", patience_s=place.patience_s)

    def test_a_vm_that_cannot_be_asked_changes_nothing(self, doomed: Place) -> None:
        resource = resource_of(doomed)
        app = Application(JobSpec(doomed.commands.write(LONG)))
        resource.submit_job(app)
        self.until(doomed, resource, app, JobState.RUNNING)
        doomed.terminate()
        for call in (resource.update_job_state, resource.cancel_job):
            with pytest.raises(VmUnreachable):
                call(app, timeout_s=5)
        with pytest.raises(VmUnreachable):
            resource.get_resource_status(timeout_s=5)
        assert resource.updated is False
        assert (app.execution.state, self.figures(resource)) == (JobState.RUNNING, (1, 1, 0))
        late = Application(JobSpec(doomed.commands.write(Act())))
        with pytest.raises(ResourceNotReady):
            resource.submit_job(late, timeout_s=5)
        assert (late.execution.state, resource.free_slots) == (JobState.NEW, 1)
        resource.lose_jobs([app, late])
        assert (app.execution.reason, late.execution.reason) == (Reason.LOST, None)
        assert self.figures(resource) == (2, 0, 0)
        resource.close()

    # ---- ending

    def test_cancelling_from_any_state(self, place: Place, resource: Resource, make: Make) -> None:
        new, running, over = make(), make(LONG), make(Act(exit_code=3))
        self.run(place, resource, over)
        resource.submit_job(running)
        self.until(place, resource, running, JobState.RUNNING)
        for _ in range(2):
            for app in (new, running):
                resource.cancel_job(app)
                assert app.execution.state == JobState.TERMINATED
                assert app.execution.reason == Reason.CANCELLED
                assert app.execution.returncode == 121
            resource.cancel_job(over)
            assert (over.execution.exit_code, over.execution.returncode) == (3, 3 << 8)
        assert self.figures(resource) == (2, 0, 0)

    def test_a_success_nobody_has_heard_of_stays_one(
        self, place: Place, resource: Resource, make: Make
    ) -> None:
        app = make(Act(write={"a": "1"}), outputs=["a"])
        resource.submit_job(app)
        channel = place.backend.connect(place.vm)
        wait_until(
            lambda: app.execution.attempt_id in channel.request("status")["exited"],
            "it ends",
            patience_s=place.patience_s,
        )
        channel.close()
        resource.cancel_job(app)
        assert (app.execution.state, app.execution.returncode) == (JobState.TERMINATING, 0)

    def test_freeing_is_for_what_has_ended(
        self, place: Place, resource: Resource, make: Make, tmp_path: Path
    ) -> None:
        app = make(Act(stdout="here", write={"a": "1"}, sleep_s=1000), outputs=["a"])
        with pytest.raises(Refused):
            resource.free(app)
        resource.submit_job(app)
        with pytest.raises(Refused):
            resource.free(app)
        resource.cancel_job(app)
        for _ in range(2):
            resource.free(app)
        for call in (
            lambda: resource.get_results(app, tmp_path),
            lambda: resource.peek(app, "stdout", io.BytesIO()),
        ):
            with pytest.raises(OutputNotAvailable):
                call()
        assert app.execution.state == JobState.TERMINATED

    def test_a_stopped_job_is_told_so(self, place: Place, resource: Resource, make: Make) -> None:
        app = make(LONG)
        resource.submit_job(app)
        self.until(place, resource, app, JobState.RUNNING)
        channel = place.backend.connect(place.vm)
        if "suspend" in channel.hello["features"]:
            channel.request("suspend", a=app.execution.attempt_id)
            assert resource.update_job_state(app) == JobState.STOPPED
            assert self.figures(resource) == (1, 1, 0)
            channel.request("resume", a=app.execution.attempt_id)
            assert resource.update_job_state(app) == JobState.RUNNING
        channel.close()

    # ---- the resource

    def test_the_status_counts_everybody(
        self, place: Place, resource: Resource, make: Make
    ) -> None:
        other, app = resource_of(place), make(LONG)
        other.submit_job(app)
        assert self.figures(resource) == (2, 0, 0)
        wait_until(
            lambda: resource.get_resource_status().free_slots == 1,
            "the other's job is seen",
            patience_s=place.patience_s,
        )
        assert resource.get_resource_status() is resource
        assert (resource.updated, resource.user_run, resource.queued) == (True, 0, 0)
        other.close()
        self.until(place, resource, app, JobState.RUNNING)  # its record leads here, too
        assert self.figures(resource) == (1, 1, 0)

    def test_closing_leaves_jobs_alone(self, place: Place, resource: Resource, make: Make) -> None:
        app = make(LONG)
        resource.submit_job(app)
        self.until(place, resource, app, JobState.RUNNING)
        resource.close()
        resource.close()
        assert resource.update_job_state(app) == JobState.RUNNING

    def test_nothing_is_done_without_credentials(self, place: Place) -> None:
        class Secret(Exception):
            pass

        def none() -> None:
            raise Secret("password")

        resource = resource_of(place, auth=none)
        app = Application(JobSpec(["true"]))
        calls: list[Callable[[], Any]] = [
            lambda: resource.submit_job(app),
            lambda: resource.update_job_state(app),
            lambda: resource.get_results(app, "."),
            lambda: resource.cancel_job(app),
            lambda: resource.free(app),
            lambda: resource.peek(app, "stdout", io.BytesIO()),
            lambda: resource.get_resource_status(),
        ]
        for call in calls:
            with pytest.raises(AuthError) as caught:
                call()
            assert "password" not in str(caught.value)
        assert (app.execution.state, app.execution.accepted) == (JobState.NEW, False)

    def test_what_it_is_made_with_never_changes(self, place: Place) -> None:
        resource = resource_of(place, location="cellar")
        assert (resource.name, resource.max_cores, resource.location) == ("lab", 2, "cellar")
        for name in ("name", "max_cores", "architecture", "max_walltime", "location"):
            with pytest.raises(Refused):
                setattr(resource, name, 3)
        with pytest.raises(AttributeError):
            _ = resource.nothing

    def test_which_urls_can_be_staged(self, resource: Resource) -> None:
        assert resource.validate_data(["/a/path", "file:///a", "relative"])
        assert resource.validate_data([])
        assert not resource.validate_data(["file:///a", "gopher://x/y"])
