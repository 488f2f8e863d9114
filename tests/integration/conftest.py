"""What the integration tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.integration.workbench import Workbench


@pytest.fixture
def bench(engine: Engine, database_url: str, tmp_path: Path) -> Workbench:
    """A database with a client's and a worker's side."""
    return Workbench(engine, database_url, tmp_path)
