"""One client of EC2 for each region, endpoint and profile, shared by all threads of the process."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from remuda.clouds import Ec2
from remuda.errors import PermanentProviderError
from remuda.workers.providers.ec2.errors import MISSING, told

__all__ = ["NEW_S", "Client", "client_of"]

NEW_S = 300.0  # for so long EC2 may not know yet what it has just made, by its documentation
CONNECT_S = 5.0
READ_S = 20.0
TRIES = 3  # each of which may take both; botocore's standard mode waits in between, and backs off


@dataclass
class Client:
    """botocore's client, and the instances that were launched with it a short while ago."""

    api: Any
    now: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _new: dict[str, tuple[float, str, str]] = field(default_factory=dict)
    _prices: dict[str, tuple[float, dict[str, float]]] = field(default_factory=dict)

    def note_launch(self, instance_id: str, pool: str, token: str) -> None:
        """Remember an instance that EC2 may not show for a while."""
        with self._lock:
            self._forget_old()
            self._new[instance_id] = (self.now(), pool, token)

    def forget(self, instance_id: str) -> None:
        """Note that what EC2 says of an instance holds from now on."""
        with self._lock:
            self._new.pop(instance_id, None)

    def forget_all(self) -> None:
        """Note that EC2 shows all there is."""
        with self._lock:
            self._new.clear()

    def new(self) -> dict[str, tuple[str, str]]:
        """Return the pool and token of each instance that EC2 may not show yet."""
        with self._lock:
            self._forget_old()
            return {key: (pool, token) for key, (_, pool, token) in self._new.items()}

    def note_prices(self, instance_type: str, by_zone: dict[str, float]) -> None:
        """Remember what spot instances of a type cost, by zone."""
        with self._lock:
            self._prices[instance_type] = (self.now(), by_zone)

    def prices(self, instance_type: str, *, age_s: float) -> dict[str, float] | None:
        """Return what spot instances of a type cost, by zone, if that was asked lately."""
        with self._lock:
            at, found = self._prices.get(instance_type, (-math.inf, None))
        return found if self.now() - at <= age_s else None

    def _forget_old(self) -> None:
        old = self.now() - NEW_S
        self._new = {key: value for key, value in self._new.items() if value[0] > old}


_clients: dict[tuple[int, str, str, str], Client] = {}
_lock = threading.Lock()


def client_of(settings: Ec2) -> Client:
    """Return the client for a pool's region; raises a ProviderError if there can be none."""
    key = (os.getpid(), settings.region, settings.endpoint_url, settings.profile)
    with _lock:  # making sessions is not safe in threads, using clients is
        if key not in _clients:
            with told("anything"):
                _clients[key] = Client(_made(settings))
        return _clients[key]


def _made(settings: Ec2) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise PermanentProviderError(MISSING, hint="pip install 'remuda[ec2]'") from error
    session = boto3.session.Session(
        profile_name=settings.profile or None, region_name=settings.region or None
    )
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        max_pool_connections=32,
        user_agent_extra="remuda",
    )
    return session.client("ec2", endpoint_url=settings.endpoint_url or None, config=config)
