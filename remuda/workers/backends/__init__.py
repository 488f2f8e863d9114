"""Backends run jobs on a kind of resource; see base.py for the contract."""

from __future__ import annotations

from functools import lru_cache

from remuda.kinds import BACKENDS, find_kind
from remuda.workers.backends.base import Backend, InputFile, OutputFile, StartJob, VmAddress

__all__ = ["Backend", "InputFile", "OutputFile", "StartJob", "VmAddress", "get_backend"]

GROUP = BACKENDS


@lru_cache(maxsize=64)
def get_backend(kind: str) -> Backend:
    """Return the backend of a kind: `local`, `ssh`, `slurm`, `noop`, or one a package registered.

    A package registers a Backend subclass as an entry point of the group `remuda.backends`. Raises
    BadInput, naming the known kinds, for any other.
    """
    backend: Backend = find_kind(GROUP, kind).load()()
    return backend
