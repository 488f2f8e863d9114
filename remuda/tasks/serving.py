"""Serving figures to Prometheus: by `remuda metrics`, or by a worker of what its own machine keeps.

A worker does it with `--metrics HOST:PORT`, for where no `remuda metrics` sees its state directory:
in a container of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from prometheus_client import PROCESS_COLLECTOR, start_http_server
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from remuda.config import load_settings
from remuda.errors import BadInput
from remuda.tasks.figures import folder

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

log = logging.getLogger(__name__)


class ProcessesCollector(Collector):
    """The figures of this machine's worker processes, living and dead, added up."""

    def __init__(self, folder: Path) -> None:
        """Read `folder`, now or whenever it is there."""
        self._folder = folder

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are known when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all families there are."""
        if self._folder.is_dir():
            reader = MultiProcessCollector(CollectorRegistry(), path=str(self._folder))  # type: ignore[no-untyped-call]
            yield from reader.collect()  # type: ignore[no-untyped-call]


def registry_of(*collectors: Collector) -> CollectorRegistry:
    """Return a registry of these collectors alone."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return registry


def of_processes(state_dir: Path) -> CollectorRegistry:
    """Return what is known without database and broker: this process, and the workers' figures."""
    return registry_of(PROCESS_COLLECTOR, ProcessesCollector(folder(state_dir)))


def address(text: str, *, option: str = "--listen") -> tuple[str, int]:
    """Return host and port of HOST:PORT, [IPv6]:PORT or PORT; raises BadInput."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise BadInput(f"{text!r} is not HOST:PORT", hint=f"{option} 127.0.0.1:9808")
    return host, int(port)


def listen(
    registry: CollectorRegistry, host: str, port: int, *, option: str = "--listen"
) -> tuple[WSGIServer, threading.Thread]:
    """Serve from a thread that ends with the process; raises BadInput if the address is no good."""
    try:
        return start_http_server(port, host, registry)
    except (OSError, UnicodeError) as error:
        raise BadInput(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            hint=f"another {option}?",
        ) from None


def check(text: str, *, option: str) -> None:
    """Raise BadInput if HOST:PORT cannot be listened on now."""
    host, port = address(text, option=option)
    server, _ = listen(CollectorRegistry(), host, port, option=option)
    server.shutdown()
    server.server_close()


class MetricsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Serves metrics from the worker's main process, from before it has a broker, to its end."""

    # After the pool has forked, so that no child holds the port.
    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, metrics: str | None = None, **options: Any) -> None:
        """Take the worker's option."""
        super().__init__(parent, **options)
        self._address = metrics
        self.enabled = bool(metrics)

    def start(self, parent: Any) -> None:
        """Listen; a worker that cannot ends."""
        host, port = address(self._address or "", option="--metrics")
        registry = of_processes(load_settings().state_dir)
        server, _ = listen(registry, host, port, option="--metrics")
        log.info("metrics on http://%s:%s/metrics", host, server.server_port)
