"""One connection to each cloud and region, shared by all threads of the process."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

from remuda.clouds import Openstack
from remuda.errors import PermanentProviderError
from remuda.workers.providers.openstack.errors import MISSING, told

__all__ = ["Client", "client_of"]

ANSWER_S = 30.0


@dataclass
class Client:
    """The SDK's connection, and locks that let one thread at a time launch a VM."""

    api: Any
    _locks: tuple[threading.Lock, ...] = field(
        default_factory=lambda: tuple(threading.Lock() for _ in range(64))
    )

    def lock(self, token: str) -> threading.Lock:
        """Return the lock of a token."""
        return self._locks[hash(token) % len(self._locks)]


_clients: dict[tuple[int, str, str, str], Client] = {}
_lock = threading.Lock()


def client_of(settings: Openstack) -> Client:
    """Return the client of a pool's cloud; raises a ProviderError if there can be none."""
    file = os.environ.get("OS_CLIENT_CONFIG_FILE", "")
    key = (os.getpid(), settings.cloud, settings.region, file)
    with _lock:
        if key not in _clients:
            with told("anything"):
                _clients[key] = Client(_made(settings))
        return _clients[key]


def _made(settings: Openstack) -> Any:
    try:
        import openstack
    except ImportError as error:
        raise PermanentProviderError(MISSING, hint="pip install 'remuda[openstack]'") from error
    return openstack.connect(
        cloud=settings.cloud or None,
        region_name=settings.region or None,
        api_timeout=ANSWER_S,
        app_name="remuda",
    )
