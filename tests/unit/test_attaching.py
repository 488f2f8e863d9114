"""The end of a worker: a watch that is being claimed meanwhile must not stay behind."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

from remuda.tasks.attaching import Attacher
from remuda.tasks.runtime import Runtime


class FakeRuntime:
    """Its transactions take as long as the test wants."""

    worker = "w"
    settings = SimpleNamespace(watch_ttl_s=1.0)
    links = SimpleNamespace(watched=dict)

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.done = 0

    def transact(self, work: Any) -> list[Any]:
        self.begun.set()
        assert self.may_end.wait(20)
        self.done += 1
        return []


def test_no_watch_is_claimed_once_it_is_closed() -> None:
    runtime = FakeRuntime()
    attacher = Attacher(cast("Runtime", runtime), lambda *_: None, lambda _: None)
    claiming = threading.Thread(target=attacher.claim, daemon=True)
    claiming.start()
    assert runtime.begun.wait(20)
    found: list[int] = []

    def close() -> None:
        attacher.close()
        found.append(runtime.done)

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    assert attacher._stop.wait(20)
    runtime.may_end.set()
    for thread in (claiming, closing):
        thread.join(20)
        assert not thread.is_alive()
    assert found == [1]  # it waited for the claim under way
    assert attacher.claim() == 0
    assert runtime.done == 1
