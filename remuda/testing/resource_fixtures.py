"""What the tests of a Resource start from, and how they wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from remuda.models.states import JobState
from remuda.spec import JobSpec
from remuda.testing.commands import Act
from remuda.testing.place import Place, wait_until
from remuda.workers.lrms.application import Application
from remuda.workers.lrms.resource import Resource

LONG = Act(stdout="here", sleep_s=1000)
Make = Callable[..., Application]


def resource_of(place: Place, **more: Any) -> Resource:
    """Return a Resource with the two slots of a place."""
    limits: dict[str, Any] = {"max_cores": 2, "max_cores_per_job": 2, "max_walltime": 3600}
    limits |= {"max_memory_per_core": 64 << 20, "backend": place.backend, "vm": place.vm, **more}
    return Resource("lab", {"x86_64", "aarch64"}, **limits)


class ResourceFixtures:
    """The VM, a Resource over it, and what makes jobs for it."""

    @pytest.fixture
    def place(self) -> Iterator[Place]:
        """Give the VM on which the tests run, and remove it."""
        raise NotImplementedError("override the fixture `place`")

    @pytest.fixture
    def doomed(self, place: Place) -> Place:
        """Give a VM that the test destroys; override it if `place` is shared by tests."""
        return place

    @pytest.fixture
    def resource(self, place: Place) -> Iterator[Resource]:
        resource = resource_of(place)
        yield resource
        resource.close()

    @pytest.fixture
    def make(self, place: Place, resource: Resource) -> Iterator[Make]:
        """Give what makes applications that do an act; they are ended and freed afterwards."""
        made: list[Application] = []

        def make(act: Act | None = None, /, **fields: Any) -> Application:
            streams = {name: fields.pop(name, "") for name in ("stdout", "stderr")}
            words = place.commands.write(act or Act())
            made.append(Application(JobSpec(words, **fields), **streams))
            return made[-1]

        yield make
        for app in made:
            resource.cancel_job(app, grace_s=0)
            resource.free(app)
        assert self.figures(resource) == (2, 0, 0)

    def figures(self, resource: Resource) -> tuple[int, int, int]:
        """Return the free slots, and how many of our jobs run and wait."""
        return (resource.free_slots, resource.user_run, resource.user_queued)

    def until(self, place: Place, resource: Resource, app: Application, *states: JobState) -> None:
        """Wait until a job is in one of these states."""
        wait_until(
            lambda: resource.update_job_state(app) in states,
            f"{app} becomes {' or '.join(states)}",
            patience_s=place.patience_s,
        )

    def run(self, place: Place, resource: Resource, app: Application) -> None:
        """Run a job to its end."""
        resource.submit_job(app)
        self.until(place, resource, app, JobState.TERMINATING, JobState.TERMINATED)
