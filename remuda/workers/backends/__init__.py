"""Backends run jobs on a kind of resource; see base.py for the contract."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points

from remuda.errors import BadInput
from remuda.workers.backends.base import Backend, InputFile, OutputFile, StartJob, VmAddress

__all__ = ["Backend", "InputFile", "OutputFile", "StartJob", "VmAddress", "get_backend"]

GROUP = "remuda.backends"


@lru_cache(maxsize=64)
def get_backend(kind: str) -> Backend:
    """Return the backend of a kind: `local`, `ssh`, or one an installed package registered.

    A package registers a Backend subclass as an entry point of the group `remuda.backends`. Raises
    BadInput, naming the known kinds, for any other.
    """
    if kind == "local":
        from remuda.workers.backends.local import LocalBackend

        return LocalBackend()
    if kind == "ssh":
        from remuda.workers.backends.ssh import SshBackend

        return SshBackend()
    plugins = {point.name: point for point in entry_points(group=GROUP)}
    if kind not in plugins:
        known = ", ".join(sorted({"local", "ssh", *plugins}))
        raise BadInput(f"there is no backend {kind!r}", hint=f"known: {known}")
    backend: Backend = plugins[kind].load()()
    return backend
