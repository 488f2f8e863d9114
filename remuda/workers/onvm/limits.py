"""What an attempt is given of the machine beside its slots, and what it may not exceed.

An attempt that asks for nothing of this costs nothing. Memory is limited by a control group where
the runner may make one, else by a resource limit of each process (see docs/limits.md).
"""

from __future__ import annotations

import glob
import os
import re
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING

from remuda.workers.onvm.cgroups import Cgroups, Group
from remuda.workers.onvm.processes import slurp
from remuda.workers.onvm.usage import size_text

if TYPE_CHECKING:
    from remuda.workers.onvm.job import Job

NEARLY = 0.9  # of a resource limit: who fails with so much in use failed for want of memory
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
TAIL = 4096  # bytes at the end of its output in which a program tells why it failed
COMPLAINTS = re.compile(
    rb"MemoryError|bad_alloc|OutOfMemory|out of memory|cannot allocate|memory exhausted"
    rb"|allocation failed|failed to allocate",
    re.I,
)


def count_gpus() -> int:
    """Return how many GPUs there are, of the kinds that are told of by a device file."""
    names = [os.path.basename(path) for path in glob.glob("/dev/nvidia[0-9]*")]
    return sum(name[6:].isdigit() for name in names)


def data_limit() -> int:
    """Return the resource limit that comes closest to memory in use.

    RLIMIT_DATA counts what a process may write to and shares with nobody, but before Linux 4.7 not
    what it maps; there it has to be RLIMIT_AS, the address space, used or not.
    """
    major, minor = (int(n) for n in re.findall(r"\d+", os.uname().release)[:2])
    return resource.RLIMIT_DATA if (major, minor) >= (4, 7) else resource.RLIMIT_AS


class Limits:
    """The CPUs and GPUs of a VM, and its control groups."""

    def __init__(self, home: str, *, gpus: int | None, cgroups: bool) -> None:
        """See what there is; `gpus` None: count them."""
        self.cpus = sorted(os.sched_getaffinity(0))
        self.free_cpus = list(self.cpus)
        self.gpus = count_gpus() if gpus is None else gpus
        self.free_gpus = list(range(self.gpus))
        self.data_limit = data_limit()
        mounts = slurp("/proc/self/mountinfo").decode("utf-8", "surrogateescape")
        membership = slurp("/proc/self/cgroup").decode("utf-8", "surrogateescape")
        self.cgroups = Cgroups(home, mounts=mounts if cgroups else "", membership=membership)

    def refusal(self, job: Job) -> str:
        """Return why this VM can never run the job, or nothing."""
        if job.pin and job.cores > len(self.cpus):
            return f"it asks to be pinned to {job.cores} CPUs; this VM has {len(self.cpus)}"
        if job.gpus > self.gpus:
            return f"it asks for {job.gpus} GPUs; this VM has {self.gpus}"
        return ""

    def fit(self, job: Job) -> bool:
        """Tell whether the job can be given what it asks for, now."""
        if not (job.pin or job.gpus):
            return True
        cpus = job.cores if job.pin else 0
        return cpus <= len(self.free_cpus) and job.gpus <= len(self.free_gpus)

    def take(self, job: Job) -> None:
        """Give the job its CPUs and GPUs."""
        if not (job.pin or job.gpus):
            return
        cpus = job.cores if job.pin else 0
        job.cpus, self.free_cpus = self.free_cpus[:cpus], self.free_cpus[cpus:]
        job.gpu_ids, self.free_gpus = self.free_gpus[: job.gpus], self.free_gpus[job.gpus :]

    def give_back(self, job: Job) -> None:
        """Have what the job had; harmless when repeated."""
        if job.cpus:
            self.free_cpus = sorted(self.free_cpus + job.cpus)
        if job.gpu_ids:
            self.free_gpus = sorted(self.free_gpus + job.gpu_ids)
        if job.pin or job.gpus:
            job.cpus, job.gpu_ids = [], []

    def environment(self, job: Job) -> dict[str, str]:
        """Return the variables that tell a job of its GPUs; none where there are no GPUs."""
        if not self.gpus:
            return {}
        return dict.fromkeys(GPU_VARIABLES, ",".join(map(str, job.gpu_ids)))

    def open(self, job: Job) -> None:
        """Make the job's control group, if it needs one; OSError if it cannot be."""
        if job.mem and self.cgroups.kind:
            job.group = self.cgroups.group(f"a{job.a}", memory=job.mem)

    def close(self, job: Job) -> None:
        """Give the job's control group up; kills what is left in it."""
        if job.group:
            job.group.kill()
            self.cgroups.doom(job.group)
        job.group = None

    def preparer(self, job: Job) -> Callable[[], None] | None:
        """Return what a process of the job is to do before it becomes its program, if anything."""
        if not (job.mem or job.cpus):
            return None
        group, cpus, size = job.group, job.cpus, 0 if job.group else job.mem

        def prepare() -> None:
            if cpus:
                os.sched_setaffinity(0, cpus)
            if size:
                _, hard = resource.getrlimit(self.data_limit)
                least = size if hard == resource.RLIM_INFINITY else min(size, hard)
                resource.setrlimit(self.data_limit, (least, least))
            if group:
                group.join()

        return prepare

    def measure(self, job: Job) -> None:
        """Add to the job's usage what its control group knows."""
        if job.group:
            job.usage.peak = job.group.peak()
            job.usage.read, job.usage.written = job.group.bytes_moved()

    def want_of_memory(self, job: Job) -> str:
        """Return, of a job that failed, the message that it was for want of memory, or nothing."""
        if not job.mem:
            return ""
        peak = job.usage.peak or job.usage.ru_maxrss * 1024
        if job.group:
            lacked = job.group.kills() > 0
        else:
            stream = job.err or job.out
            said = stream.read(max(0, stream.total - TAIL), TAIL)[1] if stream else b""
            lacked = peak >= NEARLY * job.mem or bool(COMPLAINTS.search(said))
        exact = "" if job.group else " in one process"
        return (
            f"out of memory: used up to {size_text(peak)}{exact}, limit {size_text(job.mem)}"
            if lacked
            else ""
        )


def group_of(job: Job) -> Group | None:
    """Return the control group that holds all of a job, if there is one."""
    return job.group if job.group and job.group.tree else None
