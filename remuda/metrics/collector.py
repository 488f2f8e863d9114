"""What a scrape reads of the system: the database in one snapshot, and the broker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from remuda.errors import RemudaError
from remuda.metrics.families import BOOT_S, families
from remuda.models.measuring import Counts, measure

log = logging.getLogger(__name__)


class SystemCollector(Collector):
    """The database and the broker; what was read is kept for `cache_s` seconds.

    However many scrape, the database is asked once in that time, by one connection.
    """

    def __init__(
        self,
        engine: Engine,
        check_broker: Callable[[], None],
        *,
        cache_s: float = 5.0,
        most_owners: int = 50,
        most_pools: int = 200,
    ) -> None:
        """Read nothing yet. `check_broker` raises RemudaError if the broker does not answer."""
        self._engine = engine
        self._check_broker = check_broker
        self._cache_s = cache_s
        self._most_owners = most_owners
        self._most_pools = most_pools
        self._counts = Counts()
        self._errors = {"database": 0, "broker": 0}
        self._lock = threading.Lock()
        self._until = float("-inf")
        self._kept: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are known when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all families; a part that does not answer is told to be down, and left out."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._kept = [*self._database(), *self._broker(), self._failures()]
                self._until = time.monotonic() + self._cache_s
            kept = self._kept
        yield from kept

    def _database(self) -> Iterator[Metric]:
        began, found = time.perf_counter(), []
        try:
            engine = self._engine.execution_options(isolation_level="REPEATABLE READ")
            with engine.connect() as connection:
                measures = measure(
                    connection, self._counts, buckets=BOOT_S, most_pools=self._most_pools
                )
            found = list(families(measures, most_owners=self._most_owners))
        except (DBAPIError, RemudaError) as error:
            log.warning("the database is not measured: %s", str(error).split("\n", 1)[0])
            self._errors["database"] += 1
        took_s = time.perf_counter() - began
        yield _one("remuda_database_up", "Whether the database answered.", bool(found))
        yield _one("remuda_database_scrape_seconds", "How long the database took.", took_s)
        yield from found

    def _broker(self) -> Iterator[Metric]:
        began, up = time.perf_counter(), True
        try:
            self._check_broker()
        except RemudaError as error:
            log.warning("%s", error)
            self._errors["broker"] += 1
            up = False
        took_s = time.perf_counter() - began
        yield _one("remuda_broker_up", "Whether the broker took a connection.", up)
        yield _one("remuda_broker_connect_seconds", "How long the connection took.", took_s)

    def _failures(self) -> Metric:
        family = CounterMetricFamily(
            "remuda_exporter_errors", "Scrapes that had no answer.", labels=("from",)
        )
        for part, count in self._errors.items():
            family.add_metric((part,), count)
        return family


def _one(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_, value=float(value))
