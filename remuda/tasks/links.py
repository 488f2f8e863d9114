"""The channels this worker has open: one a VM, a few dozen at most, watched ones kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from remuda.config import Settings
from remuda.errors import VmUnreachable
from remuda.workers.backends import get_backend
from remuda.workers.backends.base import Backend, VmAddress
from remuda.workers.channel import Channel

_MOST_PLAIN = 48
CONNECT_TIMEOUT_S = 10.0


def vm_address(row: Mapping[str, Any]) -> VmAddress:
    """Return how to reach the VM of a row of `remuda.models.watches`."""
    return VmAddress(
        vm_id=row["id"], name=row["name"], kind=row["backend"], address=dict(row["address"])
    )


class Links:
    """Open channels by VM id. Thread-safe; a channel that closes is forgotten."""

    def __init__(self, settings: Settings) -> None:
        """Open nothing yet."""
        self._settings = settings
        self._lock = threading.Lock()
        self._plain: OrderedDict[int, Channel] = OrderedDict()
        self._watched: dict[int, Channel] = {}

    def backend(self, kind: str) -> Backend:
        """Return the backend of that kind."""
        return get_backend(kind)

    def present(self, vm_id: int) -> Channel | None:
        """Return the VM's open channel, if there is one; connects nothing."""
        with self._lock:
            channel = self._watched.get(vm_id) or self._plain.get(vm_id)
        return channel if channel is not None and not channel.closed else None

    def get(self, row: Mapping[str, Any]) -> Channel:
        """Return an open channel to the VM of `row`, connecting if need be; raises VmUnreachable."""
        channel = self.present(row["id"])
        if channel is not None:
            return channel
        if not row["address"]:
            raise VmUnreachable(f"VM {row['name']} has no address yet")
        channel = self.backend(row["backend"]).connect(
            vm_address(row), watch=False, since=0, timeout_s=CONNECT_TIMEOUT_S
        )
        with self._lock:
            self._plain[row["id"]] = channel
            surplus = (
                [] if len(self._plain) <= _MOST_PLAIN else [self._plain.popitem(last=False)[1]]
            )
        for old in surplus:
            old.close()
        return channel

    def watch(
        self,
        row: Mapping[str, Any],
        *,
        on_push: Callable[[Channel, dict[str, Any]], None],
        on_close: Callable[[Channel], None],
    ) -> Channel:
        """Open the channel on which the VM's runner pushes from journal entry `journal_n` on."""
        channel = self.backend(row["backend"]).connect(
            vm_address(row),
            watch=True,
            since=row["journal_n"],
            on_push=on_push,
            on_close=on_close,
            timeout_s=CONNECT_TIMEOUT_S,
        )
        with self._lock:
            old = self._watched.get(row["id"])
            self._watched[row["id"]] = channel
        if old is not None:
            old.close()
        return channel

    def watched(self) -> dict[int, Channel]:
        """Return the channels of the VMs this worker watches."""
        with self._lock:
            return {vm_id: c for vm_id, c in self._watched.items() if not c.closed}

    def drop(self, vm_id: int, channel: Channel | None = None) -> bool:
        """Forget and close the VM's channels (only `channel`, if given); True if it was watched."""
        gone: list[Channel] = []
        with self._lock:
            watched = vm_id in self._watched and channel in (None, self._watched[vm_id])
            for table in (self._watched, self._plain):
                if vm_id in table and channel in (None, table[vm_id]):
                    gone.append(table.pop(vm_id))
        for old in gone:
            old.close()
        return watched

    def close(self) -> None:
        """Close all channels."""
        with self._lock:
            channels = [*self._watched.values(), *self._plain.values()]
            self._watched.clear()
            self._plain.clear()
        for channel in channels:
            channel.close()
