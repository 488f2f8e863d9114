"""The `noop` backend: simulated VMs inside this process, for tests; see docs/testing.md."""

from __future__ import annotations

from remuda.workers.backends.noop.backend import NoopBackend

__all__ = ["NoopBackend"]
