"""What `remuda run` says on a terminal while its job has not started."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remuda.cli import run_wait
from remuda.cli.run_wait import Waiting
from remuda.client import Client, Job
from remuda.errors import DatabaseUnavailable
from tests.unit.processes import until


class FakeClient:
    """A job that waits for one thing, then another, then runs; once the database is out."""

    def __init__(self) -> None:
        self.looks = 0

    def job(self, job_id: int) -> Any:
        self.looks += 1
        if self.looks == 2:
            raise DatabaseUnavailable
        return SimpleNamespace(id=job_id, state="RUNNING" if self.looks > 5 else "NEW")

    def explain(self, job: Any) -> list[str]:
        why = "No pool fits." if self.looks < 4 else "A VM boots.\x1b[2J"
        return [why, "More."]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(run_wait, "PAUSES_S", (0.001,))
    monkeypatch.setattr(run_wait, "note", lines.append)
    return lines


@pytest.mark.parametrize("terminal", [True, False])
def test_why_a_job_waits_is_said_once_and_only_to_a_person(
    monkeypatch: pytest.MonkeyPatch, said: list[str], terminal: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: terminal))
    client = FakeClient()
    with Waiting(cast("Client", client), cast("Job", SimpleNamespace(id=7))):
        if terminal:
            until(lambda: client.looks > 6)
    assert said == (
        ["remuda: job 7 waits: No pool fits.", "remuda: job 7 waits: A VM boots.\\x1b[2J"]
        if terminal
        else []
    )
