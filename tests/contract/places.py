"""A VM of each kind for the contract suites: made, and surely gone afterwards."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from remuda.config import Settings
from remuda.testing import Faults, NoopCommands, Place, world
from remuda.workers.backends import VmAddress, get_backend
from remuda.workers.providers import Provider, VmSpec, get_provider
from tests.contract.test_providers import living
from tests.slurmd import Slurm
from tests.sshd import Sshd

_tokens = itertools.count(1)


@contextlib.contextmanager
def place_of(provider: Provider, backend: str, *, spec: VmSpec | None = None) -> Iterator[Place]:
    """Give a VM of a provider to a backend."""
    vm_id = provider.spawn(spec or VmSpec("vm", "sim", 2, heartbeat_s=0.2), f"t{next(_tokens)}")
    address = provider.describe([vm_id])[vm_id].address
    vm = VmAddress(1, "vm", backend, address)
    place = Place(get_backend(backend), vm, terminate=lambda: provider.terminate(vm_id))
    try:
        yield place
    finally:
        provider.terminate(vm_id)
    assert provider.describe([vm_id]) == {}


@contextlib.contextmanager
def local_place(folder: Path) -> Iterator[Place]:
    """A folder of this machine."""
    provider = get_provider("local", Settings(data_dir=folder / "data"))
    with place_of(provider, "local") as place:
        yield place
    assert living(folder) == []


@contextlib.contextmanager
def ssh_place(host: Sshd) -> Iterator[Place]:
    """A host reached by SSH, through the loopback."""
    settings = Settings(data_dir=host.home / "none")
    provider = get_provider("static", settings, {"hosts": [host.entry()]})
    with place_of(provider, "ssh") as place:
        yield place
    assert living(host.home) == []


@contextlib.contextmanager
def slurm_place(cluster: Slurm, folder: Path) -> Iterator[Place]:
    """A login node that is this machine."""
    provider = get_provider("local", Settings(data_dir=folder / "data"))
    spec = VmSpec("vm", "sim", 2, heartbeat_s=0.2, settings={"slurm": cluster.options})
    with place_of(provider, "slurm", spec=spec) as place:
        yield place
    assert living(folder) == []


@contextlib.contextmanager
def ssh_slurm_place(cluster: Slurm, host: Sshd) -> Iterator[Place]:
    """A login node reached by SSH."""
    settings = {"hosts": [host.entry()], "slurm": cluster.options}
    provider = get_provider("static", Settings(data_dir=host.home / "none"), settings)
    spec = VmSpec("vm", "sim", 2, heartbeat_s=0.2, settings=settings)
    with place_of(provider, "slurm", spec=spec) as place:
        yield place
    assert living(host.home) == []


@contextlib.contextmanager
def noop_place(faults: Faults | None = None) -> Iterator[Place]:
    """A VM that is but memory of this process."""
    provider = get_provider("noop", Settings(data_dir=Path("/nonexistent")))
    with place_of(provider, "noop") as place:
        vm_id = str(place.vm.address["noop"])
        place.commands = NoopCommands()
        place.kill_runner = lambda _: world().kill_runner(vm_id)
        if faults:
            world().machine(vm_id).runner.faults = faults
        yield place
