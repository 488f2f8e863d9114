"""The kombu transport: virtual channels whose queues are in a Spool."""

# kombu ships py.typed but hardly an annotation.
# mypy: allow-untyped-calls
from __future__ import annotations

import logging
import time
from queue import Empty
from typing import Any, ClassVar

from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.utils.json import dumps, loads

from remuda.broker.bell import Bell
from remuda.broker.inbox import Inbox
from remuda.broker.spool import Binding, Spool
from remuda.errors import BrokerUnavailable

logger = logging.getLogger(__name__)

#: A worker's loop gets control back at least this often, to see that it should stop.
_IDLE_TURN_S = 0.25


class Channel(virtual.Channel):
    """kombu's virtual channel, its queues in a Spool."""

    supports_fanout = True
    connection: Any

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        """Open a channel of `connection` (a Transport)."""
        super().__init__(connection, **kwargs)
        self.spool: Spool = connection.spool
        self.no_ack_queues: set[str] = set()
        self._inboxes: dict[str, Inbox] = {}

    # -- messages ---------------------------------------------------------------------------

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        # A named exchange knows declared queues only: one that is gone was removed meanwhile.
        named = bool(message["properties"]["delivery_info"].get("exchange"))
        try:
            self.spool.put(queue, dumps(message).encode(), create=not named)
        except OSError as error:
            raise ChannelError(f"cannot write to the broker's folder: {error}") from error

    def _put_fanout(
        self, exchange: str, message: dict[str, Any], routing_key: str, **kwargs: Any
    ) -> None:
        for binding in self.spool.bindings(exchange):
            self._put(binding.queue, message)

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        inbox = self._inboxes.get(queue)
        if inbox is None:
            inbox = self._inboxes[queue] = Inbox(self.spool, queue)
        while (claimed := inbox.take()) is not None:
            try:
                message: dict[str, Any] = loads(claimed.body.decode())
                message["properties"]["delivery_tag"] = claimed.tag
            except (ValueError, KeyError, TypeError) as error:
                logger.error("dropped an unreadable message of %s: %r", queue, error)
                self.spool.ack(claimed.tag)
                continue
            if queue in self.no_ack_queues:
                self.spool.ack(claimed.tag)
            return message
        raise Empty

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Take one message if there is one."""
        message = super().basic_get(queue, no_ack, **kwargs)
        if message is not None and no_ack:
            self.spool.ack(message.delivery_tag)
        return message

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Forget a delivered message; from any thread."""
        super().basic_ack(delivery_tag, multiple)
        self.spool.ack(delivery_tag)
        if self.connection is not None:
            self.connection.bell.ring()  # the consumer may have waited for its prefetch window

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a delivered message back to its queue, or drop it."""
        super().basic_reject(delivery_tag, requeue=requeue)
        if not requeue:
            self.spool.ack(delivery_tag)
        if self.connection is not None:
            self.connection.bell.ring()

    def _restore(self, message: Any) -> None:
        self.spool.requeue(message.delivery_tag)

    # -- consumers --------------------------------------------------------------------------

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any
    ) -> None:
        """Deliver the messages of `queue` to `callback` in `drain_events`."""
        if no_ack:
            self.no_ack_queues.add(queue)
        else:
            self.no_ack_queues.discard(queue)
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        self.watch()

    def basic_cancel(self, consumer_tag: str) -> None:
        """End a consumer; a transient queue ends with its last one."""
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is not None and queue not in self._active_queues and self.spool.holds(queue):
            self.spool.leave(queue)

    def watch(self) -> None:
        """Have the transport woken up by messages for the consumers; harmless when repeated."""
        for queue in self._active_queues:
            self.connection.bell.watch(self.spool.folder(queue))

    def consumes(self) -> bool:
        """Tell whether a consumer here acknowledges what it gets: a worker's task consumer."""
        return any(queue not in self.no_ack_queues for queue in self._active_queues)

    # -- queues -----------------------------------------------------------------------------

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        self.spool.declare(queue, transient=bool(kwargs.get("auto_delete")))

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self.spool.exists(queue)

    def _size(self, queue: str) -> int:
        return len(self.spool.names(queue))

    def _purge(self, queue: str) -> int:
        return self.spool.purge(queue)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        """Remove a queue, its messages and its bindings."""
        if if_empty and self._size(queue):
            return
        self.spool.remove(queue)
        self.state.queue_bindings_delete(queue)

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Any = None,
        **kwargs: Any,
    ) -> None:
        """Subscribe `queue` to `exchange`."""
        exchange = exchange or "amq.direct"
        super().queue_bind(queue, exchange, routing_key, arguments, **kwargs)
        # Again on disk: this process may remember a binding that another one has removed.
        self._queue_bind(
            exchange, *self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        )

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        self.spool.bind(exchange, Binding(routing_key or "", pattern or "", queue))

    def get_table(self, exchange: str) -> list[Binding]:
        """Return the bindings of `exchange`."""
        return self.spool.bindings(exchange)


class Transport(virtual.Transport):
    """kombu's virtual transport over the folder `transport_options["folder"]`."""

    Channel = Channel
    driver_type = "filesystem"
    driver_name = "remuda"
    cycle: Any
    implements = virtual.Transport.implements.extend(
        asynchronous=False, exchange_type=frozenset(["direct", "topic", "fanout"])
    )
    _shared: ClassVar[dict[str, tuple[Spool, Any]]] = {}

    def __init__(self, client: Any, **kwargs: Any) -> None:
        """Open the transport for a kombu Connection."""
        super().__init__(client, **kwargs)
        folder = client.transport_options.get("folder")
        if folder:
            if folder not in self._shared:
                self._shared[folder] = (Spool(folder), virtual.BrokerState())
            self.spool, self.state = self._shared[folder]
        self.bell = Bell()

    def establish_connection(self) -> Any:
        """Connect; raises BrokerUnavailable without the transport option `folder`.

        Not earlier: Celery makes a transport without options to print a broker's URL.
        """
        if not hasattr(self, "spool"):
            raise BrokerUnavailable("filesystem:// needs the transport option `folder`")
        return super().establish_connection()

    def driver_version(self) -> str:
        """Return the format of the folders."""
        return "1"

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Deliver one message; raise TimeoutError when none came in `timeout` seconds.

        With a consumer that acknowledges, as in a worker, it also returns without a message now
        and then, so that the caller's loop sees what else there is to do.
        """
        started = time.monotonic()
        while True:
            self.spool.sweep()
            try:
                self.cycle.get(self._deliver, timeout=timeout)
                return
            except Empty:
                pass
            waited = time.monotonic() - started
            if timeout is not None and waited >= timeout:
                raise TimeoutError
            if waited >= _IDLE_TURN_S:
                for channel in self.channels:
                    channel.watch()  # somebody may have removed a queue and made it again
                if any(channel.consumes() for channel in self.channels):
                    return
            turn = _IDLE_TURN_S if waited < _IDLE_TURN_S else 1.0
            self.bell.wait(turn if timeout is None else min(turn, timeout - waited))

    def close_connection(self, connection: Any) -> None:
        """Close the channels; what they had not acknowledged goes back."""
        super().close_connection(connection)
        self.bell.close()
