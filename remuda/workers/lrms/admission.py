"""Whether a Resource can take a job, and the attempt that is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from remuda.constraints import Hardware, unmet
from remuda.errors import NoResources
from remuda.workers.backends.base import OutputFile, StartJob
from remuda.workers.lrms.application import Application
from remuda.workers.lrms.inputs import input_files

__all__ = ["Limits", "admit", "floor"]

# Attempts are numbered by the microsecond: none that is older than a day may come to start.
FLOOR = 86_400_000_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a Resource is made with; of `extra`, `max_gpus` and `hardware` are looked at."""

    name: str
    architecture: frozenset[str]
    max_cores: int
    max_cores_per_job: int
    max_memory_per_core: int
    max_walltime: float
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


NAMES = frozenset(f.name for f in fields(Limits)) - {"extra"}
NOTHING = Limits(
    name="",
    architecture=frozenset(),
    max_cores=0,
    max_cores_per_job=0,
    max_memory_per_core=0,
    max_walltime=0,
)


def floor(attempt_id: int) -> int:
    """Return a number that no attempt which may still be started is below."""
    return max(0, attempt_id - FLOOR)


def admit(app: Application, limits: Limits) -> StartJob:
    """Return the attempt to start; raises NoResources or DataStagingError, having done nothing."""
    spec, run = app.spec, app.execution
    for problem in _problems(app, limits):
        raise NoResources(f"{limits.name} can never run {app}: {problem}")
    return StartJob(
        attempt_id=run.attempt_id,
        job_id=run.job_id,
        epoch=run.epoch,
        command=spec.words,
        env=dict(spec.environment or {}),
        inputs=input_files(spec.input_files),
        outputs=tuple(OutputFile(file.name, file.optional) for file in spec.output_files),
        cores=spec.cores,
        memory_bytes=spec.memory_bytes,
        walltime_s=spec.walltime_s if spec.walltime_s is not None else limits.max_walltime,
        gpus=spec.gpus,
        pin_cpus=spec.pin_cpus,
        workdir=spec.workdir,
        prologue=_words(spec.prologue),
        epilogue=_words(spec.epilogue),
        join=spec.join_output,
        output_limit_bytes=spec.output_limit_bytes,
    )


def _problems(app: Application, limits: Limits) -> list[str]:
    spec = app.spec
    found = []
    most = min(limits.max_cores, limits.max_cores_per_job)
    if spec.cores > most:
        found.append(f"it needs {spec.cores} cores, at most {most} are possible")
    if (spec.memory_bytes or 0) > limits.max_memory_per_core * spec.cores:
        found.append(
            f"it needs {spec.memory_bytes} bytes of memory on {spec.cores} cores, "
            f"at most {limits.max_memory_per_core} a core are possible"
        )
    if (spec.walltime_s or 0) > limits.max_walltime:
        most_s = limits.max_walltime
        found.append(f"it needs {spec.walltime_s:g} s, at most {most_s:g} s are possible")
    if spec.architecture and spec.architecture not in limits.architecture:
        has = ", ".join(sorted(limits.architecture)) or "none"
        found.append(f"it needs the architecture {spec.architecture}, there is {has}")
    gpus = limits.extra.get("max_gpus", 0)
    if spec.gpus > gpus:
        found.append(f"it needs {spec.gpus} GPUs, there are {gpus}")
    hardware = limits.extra.get("hardware") or Hardware(cores=limits.max_cores, gpus=gpus)
    found += unmet(hardware, architecture=None, constraints=spec.constraints)
    return found


def _words(command: Any) -> tuple[str, ...] | None:
    return tuple(str(word) for word in command) if command else None
