"""Commands run against a stand-in of the client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from remuda.cli import connect


def stand_in(monkeypatch: pytest.MonkeyPatch, client: Any) -> None:
    """Let commands that open a client get this one."""

    @contextmanager
    def opened(*, start: bool = True) -> Iterator[Any]:
        yield client

    monkeypatch.setattr(connect, "open_client", opened)
