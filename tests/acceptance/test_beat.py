"""Beat as a process: it ends when it is asked to, wherever it is."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cutting import Cutting
from tests.system import System, eventually


@pytest.mark.parametrize("fixture", ["rabbitmq_url", "redis_url"])
def test_it_ends_while_it_waits_for_the_broker(
    fixture: str, tmp_path: Path, database_url: str, request: pytest.FixtureRequest
) -> None:
    """The broker has gone silent in the middle of a message."""
    url = urlsplit(request.getfixturevalue(fixture))
    assert url.port
    with Cutting() as line:
        line.to = url.port
        through = url._replace(netloc=url.netloc.replace(f":{url.port}", f":{line.port}"))
        system = System(tmp_path, database_url=database_url, broker_url=through.geturl())
        try:
            system.start_beat()
            eventually("it sends", lambda: line.up > 2000)
            line.hush()
            eventually("it waits for an answer", lambda: line.asked)
            assert system.stop("beat") < 5
        finally:
            system.close()
