"""Events on their way to the broker: batches on a connection of their own, dropped when it is away."""

# kombu ships py.typed but hardly an annotation.
# mypy: allow-untyped-calls
from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery.events.event import get_exchange
from celery.utils.time import utcoffset
from kombu.connection import Connection
from kombu.messaging import Producer

from remuda.tasks import figures

log = logging.getLogger(__name__)

_MOST_IN_A_MESSAGE = 200
_PAUSES_S = (1.0, 30.0)


class Wire:
    """Publishes lists of events, as Celery's own workers do for groups; for one thread."""

    def __init__(self, app: Celery) -> None:
        """Connect to nothing yet."""
        self._app = app
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._pause_s = _PAUSES_S[0]
        self._retry_at = 0.0

    def send(self, events: Sequence[dict[str, Any]]) -> bool:
        """Publish the events in order, or drop them all if the broker is away; tell which."""
        if not events:
            return True
        if time.monotonic() < self._retry_at:
            self.drop(len(events))
            return False
        offset = utcoffset()
        try:
            for start in range(0, len(events), _MOST_IN_A_MESSAGE):
                self._publish(
                    [
                        {"utcoffset": offset, "clock": self._app.clock.forward(), **event}
                        for event in events[start : start + _MOST_IN_A_MESSAGE]
                    ]
                )
        except Exception as error:  # whatever a transport raises: monitoring must not matter
            log.warning("events for monitors are dropped: %s", type(error).__name__)
            self.drop(len(events))
            self.close()
            self._retry_at = time.monotonic() + self._pause_s
            self._pause_s = min(_PAUSES_S[1], self._pause_s * 2)
            return False
        self._pause_s = _PAUSES_S[0]
        return True

    def drop(self, count: int) -> None:
        """Count events that nobody gets."""
        kept = figures.figures()
        if kept is not None:
            kept.events_dropped.inc(count)

    def _publish(self, events: list[dict[str, Any]]) -> None:
        conf = self._app.conf
        if self._producer is None:
            self._connection = self._app.connection_for_write()
            exchange = get_exchange(self._connection, name=conf.event_exchange)
            self._producer = Producer(
                self._connection.channel(), exchange=exchange, serializer=conf.event_serializer
            )
        self._producer.publish(
            events,
            # Not "worker.…": that is what workers' gossip listens to, and VMs are none of theirs.
            routing_key="task.multi",
            exchange=self._producer.exchange,
            declare=[self._producer.exchange],
            headers={"hostname": "remuda"},
            delivery_mode=1,  # not kept on disk
            retry=False,
        )

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            try:
                connection.release()
            except Exception as error:
                log.debug("closing the connection for events: %r", error)
