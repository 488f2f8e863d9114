"""Backends run jobs on a kind of resource; see base.py for the contract."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from remuda.errors import BadInput
from remuda.workers.backends.base import Backend, InputFile, OutputFile, StartJob, VmAddress

__all__ = ["Backend", "InputFile", "OutputFile", "StartJob", "VmAddress", "get_backend"]

GROUP = "remuda.backends"
_HERE = {
    "local": "remuda.workers.backends.local:LocalBackend",
    "noop": "remuda.workers.backends.noop:NoopBackend",
    "slurm": "remuda.workers.backends.slurm:SlurmBackend",
    "ssh": "remuda.workers.backends.ssh:SshBackend",
}


@lru_cache(maxsize=64)
def get_backend(kind: str) -> Backend:
    """Return the backend of a kind: `local`, `ssh`, `slurm`, `noop`, or one a package registered.

    A package registers a Backend subclass as an entry point of the group `remuda.backends`. Raises
    BadInput, naming the known kinds, for any other.
    """
    where = _HERE.get(kind)
    found = EntryPoint(kind, where, GROUP) if where else _plugin(kind)
    backend: Backend = found.load()()
    return backend


def _plugin(kind: str) -> EntryPoint:
    plugins = {point.name: point for point in entry_points(group=GROUP)}
    if kind not in plugins:
        known = ", ".join(sorted({*_HERE, *plugins}))
        raise BadInput(f"there is no backend {kind!r}", hint=f"known: {known}")
    return plugins[kind]
