"""The `filesystem://` broker: a kombu transport over folders, for everything on one machine.

Compared with kombu's own: messages appear whole or not at all, any number of processes consume,
an unacknowledged message of a killed worker comes back, transient queues (events, remote control)
end with their process, and an idle consumer sleeps in the kernel (inotify) instead of polling.

    files ← spool ← inbox ← transport;  bell ← inbox, transport
"""

from __future__ import annotations

import os
from typing import Any

from kombu import transport as kombu_transports

from remuda.broker.files import make_private
from remuda.config import Settings
from remuda.errors import BrokerUnavailable

__all__ = ["register", "transport_options"]


def register() -> None:
    """Make `filesystem://` mean this transport, for every Celery app of this process."""
    kombu_transports.TRANSPORT_ALIASES["filesystem"] = "remuda.broker.transport:Transport"


def transport_options(settings: Settings) -> dict[str, Any]:
    """Return Celery's `broker_transport_options`, making the folder (mode 0700) if missing.

    Raises BrokerUnavailable if it cannot be written.
    """
    folder = str(settings.broker_dir)
    try:
        make_private(folder)
        usable = os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
        reason = "" if usable else "not a writable directory"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise BrokerUnavailable(
            f"the broker cannot use the folder {folder}: {reason}",
            hint="set REMUDA_DATA_DIR to a directory you can write, or REMUDA_BROKER_URL",
        )
    return {"folder": folder}
