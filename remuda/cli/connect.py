"""The one place where commands get their client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remuda.client import Client


@contextmanager
def open_client(*, start: bool = True) -> Iterator[Client]:
    """Open the client of the settings in force; with `start` the embedded default is started."""
    from remuda.client import Client

    with Client(start=start) as client:
        yield client
