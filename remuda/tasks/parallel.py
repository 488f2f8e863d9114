"""Run calls to the outside in bounded parallel, each with a deadline that holds whatever it does."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_hung: dict[Hashable, threading.Thread] = {}  # calls given up that have not returned
_lock = threading.Lock()


def each(
    works: Mapping[K, Callable[[], T]], *, at_once: int, deadline_s: float | Mapping[K, float]
) -> dict[K, T | Exception]:
    """Run every work in a thread of its own, `at_once` at most; return what each came to.

    An exception is returned in its place. A work that takes longer than `deadline_s` seconds (a
    mapping has each one's) is given up: TimeoutError. Its thread is left behind, and as long as it
    hangs another work of the same key is a TimeoutError at once.
    """
    waiting = list(works.items())[::-1]
    done: queue.SimpleQueue[tuple[K, T | Exception]] = queue.SimpleQueue()
    running: dict[K, tuple[threading.Thread, float]] = {}
    results: dict[K, T | Exception] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            key, work = waiting.pop()
            if _still_hangs(key):
                results[key] = TimeoutError("an earlier call has not returned yet")
                continue
            thread = threading.Thread(target=_run, args=(key, work, done), daemon=True)
            limit_s = deadline_s[key] if isinstance(deadline_s, Mapping) else deadline_s
            running[key] = (thread, time.monotonic() + limit_s)
            thread.start()
        if not running:
            continue
        next_end = min(end for _, end in running.values())
        try:
            key, result = done.get(timeout=max(0.0, next_end - time.monotonic()))
            if running.pop(key, None) is not None:
                results[key] = result
        except queue.Empty:
            for key in [k for k, (_, end) in running.items() if end <= time.monotonic()]:
                thread, _ = running.pop(key)
                results[key] = TimeoutError("no answer in the time it was given")
                with _lock:
                    _hung[key] = thread
    return results


def _run(key: K, work: Callable[[], T], done: queue.SimpleQueue[tuple[K, T | Exception]]) -> None:
    try:
        done.put((key, work()))
    except Exception as error:  # whatever it is, it is for the caller
        done.put((key, error))


def _still_hangs(key: Hashable) -> bool:
    with _lock:
        thread = _hung.get(key)
        if thread is not None and not thread.is_alive():
            del _hung[key]
            thread = None
        return thread is not None
