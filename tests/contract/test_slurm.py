"""The backends' contract over a real Slurm cluster, its login node this machine.

Slurm starts jobs about once a second, so there are fewer of them here; and they outlive the runner.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda.models.states import JobState, Reason
from remuda.spec import JobSpec
from remuda.testing import Act, BackendContract, Place, ResourceContract, Site
from remuda.testing.resource_fixtures import LONG, resource_of
from remuda.workers.channel import Channel
from remuda.workers.lrms.application import Application
from tests.contract.places import slurm_place, ssh_slurm_place
from tests.slurmd import Slurm, slurm
from tests.sshd import running_sshd

__all__ = ["slurm"]


@pytest.fixture(scope="module")
def shared_place(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One VM for all tests that leave it as it was: it takes Slurm a second to start a job."""
    with slurm_place(slurm, tmp_path_factory.mktemp("slurm")) as place:
        yield place


class TestSlurm(BackendContract):
    @pytest.fixture
    def place(self, shared_place: Place) -> Place:
        return shared_place

    @pytest.fixture
    def doomed(self, slurm: Slurm, tmp_path: Path) -> Iterator[Place]:
        with slurm_place(slurm, tmp_path) as place:
            yield place

    def test_a_batch_runs(self, site: Site, channel: Channel) -> None:
        jobs = [site.job(Act(stdout=f"{n}", exit_code=n % 3)) for n in range(6)]
        assert set(site.submit(channel, *jobs).values()) == {"queued"}
        assert [site.exit(job)["st"] for job in jobs] == [0, 1, 2, 0, 1, 2]

    def test_cancelling_and_recalling(self, site: Site, channel: Channel) -> None:
        jobs = [site.job(Act(sleep_s=1000), cores=2) for _ in range(3)]
        one, two, three = (job.attempt_id for job in jobs)
        site.submit(channel, jobs[0])
        site.start(jobs[0])  # until then it can be taken back, from Slurm's queue too
        site.submit(channel, *jobs)
        assert site.backend.recall_jobs(channel, site.vm, [one, three, 1 << 40]) == [three]
        assert site.backend.cancel_jobs(channel, site.vm, [one, two, 1 << 40]) == [1 << 40]
        assert [site.exit(job)["why"] for job in jobs[:2]] == ["CANCELLED", "CANCELLED"]
        assert site.submit(channel, jobs[2]) == {three: "stale"}

    def test_a_dead_runner_is_revived(self, doomed: Place) -> None:
        site = Site(doomed)
        channel, job = site.connect(), site.job(Act(sleep_s=1000))
        site.submit(channel, job)
        seen = site.start(job)["n"]
        doomed.kill_runner(channel)
        assert site.closed.wait(doomed.patience_s)
        site.backend.revive(site.vm)
        site.backend.revive(site.vm)
        channel = site.connect(since=seen)
        assert site.submit(channel, job) == {job.attempt_id: "running"}
        site.backend.cancel_jobs(channel, site.vm, [job.attempt_id])
        assert site.exit(job)["why"] == "CANCELLED"
        channel.close()


class TestResource(ResourceContract):
    @pytest.fixture
    def place(self, shared_place: Place) -> Place:
        return shared_place

    @pytest.fixture
    def doomed(self, slurm: Slurm, tmp_path: Path) -> Iterator[Place]:
        with slurm_place(slurm, tmp_path) as place:
            yield place

    def test_a_killed_runner_loses_its_jobs(self, doomed: Place) -> None:
        """Here it does not: they are Slurm's."""
        resource = resource_of(doomed)
        app = Application(JobSpec(doomed.commands.write(LONG)))
        resource.submit_job(app)
        self.until(doomed, resource, app, JobState.RUNNING)
        doomed.kill_runner(doomed.backend.connect(doomed.vm))
        doomed.backend.revive(doomed.vm)
        other = resource_of(doomed)
        assert other.update_job_state(app) == JobState.RUNNING
        other.cancel_job(app, grace_s=0)
        assert app.execution.reason == Reason.CANCELLED
        resource.close()
        other.close()


def test_a_login_node_reached_by_ssh(slurm: Slurm) -> None:
    with running_sshd() as host, ssh_slurm_place(slurm, host) as place:
        site = Site(place)
        channel = site.connect()
        jobs = [site.job(Act(stdout=f"{n}", exit_code=n)) for n in range(2)]
        site.submit(channel, *jobs)
        assert [site.exit(job)["st"] for job in jobs] == [0, 1]
        channel.close()
