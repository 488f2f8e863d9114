"""The public names, on purpose; and that importing them is cheap."""

from __future__ import annotations

import subprocess
import sys

import remuda
import remuda.client

SURFACE = """
    ANY_OUTPUT After AlreadyExists Array BadInput Client ConfigError DataStagingError
    DatabaseUnavailable EmbeddedError Explanation Input InstanceNotFound Job JobFailed JobSpec Lease
    LeasedVm NoResources NoVmAvailable NotFound Output OutputNotAvailable Pool Refused RemudaError Result
    RetryPolicy RetryRule Settings StaleHolder UnknownArray UnknownJob UnknownPool UnownedMachine Usage
    VmInfo WaitTimeout load_settings
"""


def test_the_surface_is_what_it_is_on_purpose() -> None:
    assert sorted(remuda.__all__) == sorted(SURFACE.split())
    assert set(remuda.client.__all__) < set(remuda.__all__)
    for name in remuda.__all__:
        value = getattr(remuda, name)
        assert isinstance(value, str) or value.__module__.startswith("remuda.")
        assert name in dir(remuda)
    assert not hasattr(remuda, "nothing")
    assert not hasattr(remuda.client, "nothing")


def _loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in done.stdout.split()} | set(done.stdout.split())


def test_importing_costs_only_what_is_asked_for() -> None:
    heavy = {"sqlalchemy", "psycopg", "pydantic", "alembic", "celery", "fsspec", "fabric"}
    assert not heavy & _loaded_by("import remuda, remuda.client")
    assert not heavy & _loaded_by("from remuda import JobSpec, JobFailed, BadInput")
    wanted = _loaded_by("from remuda import Client, Job, Pool, Lease, Result")
    assert not wanted & {"alembic", "celery", "fsspec", "fabric", "kombu"}
    assert not {name for name in wanted if name.startswith(("remuda.tasks", "remuda.workers"))}
