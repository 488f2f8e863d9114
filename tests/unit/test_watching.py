"""The watcher looks for jobs to try again when their pauses are over, not only by the sweep."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from remuda.tasks import watching
from remuda.tasks.flower.teller import Teller
from remuda.tasks.runtime import Runtime
from remuda.tasks.watching import Watcher


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Watcher:
    """One that is not started, its helpers left out."""
    nothing: Any = SimpleNamespace(Attacher=lambda *a: None, Answerer=lambda *a: None)
    monkeypatch.setattr(watching, "attaching", nothing)
    monkeypatch.setattr(watching, "calling", nothing)
    return Watcher(cast(Runtime, SimpleNamespace()), cast(Teller, None))


def test_pauses_of_retries_are_kept_in_few_steps(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many jobs that failed together are few looks; none is before its pause is over."""
    clock = SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr(watching, "time", clock)
    watcher._note_retries([1 + i / 10_000 for i in range(5000)] + [30.0])
    assert len(watcher._retry_at) <= 8
    assert not watcher._is_due(101.0)
    assert watcher._is_due(101.2)
    assert not watcher._is_due(101.2)
    assert watcher._is_due(103.0)
    assert not watcher._is_due(129.9)
    assert watcher._is_due(130.2)
    assert watcher._retry_at == set()


def test_what_needs_no_look(watcher: Watcher) -> None:
    """Retries without a pause have woken the dispatcher; long pauses are the sweep's."""
    watcher._note_retries([0.0, 3600.0])
    assert watcher._retry_at == set()
