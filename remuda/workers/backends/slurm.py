"""The `slurm` backend: a VM is a login node of a cluster, and its runner hands the jobs to Slurm.

The login node is this machine or a host reached by SSH, as the VM's address says; everything but
the runner's executor is as for those (see `remuda.workers.onvm.slurm` and docs/slurm.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from remuda.hosts import slurm_of
from remuda.workers.backends.base import Backend, InputFile, StartJob, VmAddress
from remuda.workers.backends.local import LocalBackend
from remuda.workers.backends.ssh import SshBackend
from remuda.workers.channel import Channel

__all__ = ["SlurmBackend", "runner_arguments", "serve_arguments"]


def runner_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Return what `runner serve` is told if a pool's jobs go to Slurm; raises BadInput."""
    options = slurm_of(settings)
    return [] if options is None else ["--executor", "slurm", "--slurm", json.dumps(options)]


def serve_arguments(
    *,
    name: str,
    slots: int,
    memory_bytes: int | None,
    heartbeat_s: float,
    settings: Mapping[str, Any],
) -> list[str]:
    """Return what `runner serve` is told on a VM of a pool of these settings; raises BadInput."""
    words = ["--slots", str(slots), "--name", name or "vm", "--memory", str(memory_bytes or 0)]
    return [*words, "--heartbeat", str(heartbeat_s), *runner_arguments(settings)]


class SlurmBackend(Backend):
    """Runs jobs on Slurm clusters; the address is as for `local`, or as for `ssh`."""

    kind = "slurm"

    def __init__(self) -> None:
        """Have both ways to reach a login node."""
        self._local, self._ssh = LocalBackend(), SshBackend()

    def _way(self, vm: VmAddress) -> Backend:
        return self._ssh if "address" in vm.address else self._local

    def connect(
        self,
        vm: VmAddress,
        *,
        watch: bool = False,
        since: int = 0,
        on_push: Callable[[Channel, dict[str, Any]], None] | None = None,
        on_close: Callable[[Channel], None] | None = None,
        timeout_s: float = 10.0,
    ) -> Channel:
        """Connect to the login node's runner."""
        return self._way(vm).connect(
            vm, watch=watch, since=since, on_push=on_push, on_close=on_close, timeout_s=timeout_s
        )

    def install(self, vm: VmAddress, arguments: Sequence[str], *, timeout_s: float = 60.0) -> None:
        """Bring a runner to the login node, if that is new."""
        self._way(vm).install(vm, arguments, timeout_s=timeout_s)

    def revive(self, vm: VmAddress, *, timeout_s: float = 30.0) -> None:
        """Start the runner again; what Slurm has of it goes on and is not LOST."""
        self._way(vm).revive(vm, timeout_s=timeout_s)

    def submit_jobs(
        self, channel: Channel, vm: VmAddress, jobs: Sequence[StartJob], *, floor: int
    ) -> dict[int, str]:
        """Hand attempts to the runner, which hands them to Slurm when its slots allow."""
        return self._way(vm).submit_jobs(channel, vm, jobs, floor=floor)

    def source(self, file: InputFile, vm: VmAddress) -> str:
        """Return a path on the login node; the runner copies it into the shared home."""
        return self._way(vm).source(file, vm)

    def _copy_out(
        self, channel: Channel, vm: VmAddress, attempt_id: int, name: str, file: BinaryIO
    ) -> int:
        return self._way(vm)._copy_out(channel, vm, attempt_id, name, file)
