"""What a worker process holds: its engine, its channels, its name. Made after the fork, once."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, Engine

from remuda.config import Settings, load_settings
from remuda.models import watches
from remuda.models.database import make_engine, transact
from remuda.system import bring_up
from remuda.tasks.links import Links

T = TypeVar("T")


class Runtime:
    """One per process; `get_runtime()` returns it."""

    def __init__(self, settings: Settings) -> None:
        """Make sure there is a database with the right schema; connect to no VM yet."""
        self.settings = settings
        self.pid = os.getpid()
        self.worker = f"{socket.gethostname()}:{self.pid}:{os.urandom(3).hex()}"
        self.url = bring_up(settings, processes=False)
        self.engine: Engine = make_engine(self.url, pool_size=settings.worker_concurrency + 2)
        self.links = Links(settings)
        self._vm_names: dict[int, str] = {}

    def vm_name(self, vm_id: int) -> str:
        """Return a VM's name, "VM 7" if there is none; asked for once."""
        if vm_id not in self._vm_names:
            if len(self._vm_names) > 10_000:
                self._vm_names.clear()
            found = self.transact(lambda c: watches.vm_name(c, vm_id))
            self._vm_names[vm_id] = found or f"VM {vm_id}"
        return self._vm_names[vm_id]

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction of its own; see `remuda.models.database.transact`."""
        return transact(self.engine, work)

    def close(self) -> None:
        """Close channels and connections; jobs on the VMs go on."""
        self.links.close()
        self.engine.dispose()


_lock = threading.Lock()
_runtime: Runtime | None = None


def get_runtime() -> Runtime:
    """Return this process's runtime; a forked child gets a new one of its own."""
    global _runtime
    with _lock:
        if _runtime is None or _runtime.pid != os.getpid():
            _runtime = Runtime(load_settings())
        return _runtime


def drop_runtime() -> None:
    """Close the process's runtime, if there is one."""
    global _runtime
    with _lock:
        runtime, _runtime = _runtime, None
    if runtime is not None and runtime.pid == os.getpid():
        runtime.close()
