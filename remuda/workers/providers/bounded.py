"""A provider none of whose calls takes for ever."""

from __future__ import annotations

import builtins
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from remuda.errors import TransientProviderError
from remuda.workers.providers.base import Provider, VmDescription, VmSpec

__all__ = ["Bounded"]

log = logging.getLogger(__name__)
T = TypeVar("T")
MOST_HUNG = 32  # calls of one kind of provider, in this process

_hung: dict[str, set[threading.Thread]] = {}
_lock = threading.Lock()


class Bounded(Provider):
    """A provider whose calls return, or raise, within their deadlines.

    A call that does not goes on unheard in a thread of its own, and its caller meets a
    TransientProviderError. While many of one kind hang, no more are made.
    """

    kind = "bounded"

    def __init__(self, inner: Provider) -> None:
        """Call `inner`, as long as its `deadline_s` says."""
        self._inner = inner

    def deadline_s(self, call: str) -> float:
        """Return the inner provider's."""
        return self._inner.deadline_s(call)

    def spawn(self, spec: VmSpec, token: str) -> str:
        """See Provider; what a call that took too long has made is found by `list`."""
        return self._within("spawn", lambda: self._inner.spawn(spec, token))

    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        """See Provider."""
        wanted = builtins.list(ids)
        return self._within("describe", lambda: self._inner.describe(wanted))

    def list(self, tag: str) -> builtins.list[VmDescription]:
        """See Provider."""
        return self._within("list", lambda: self._inner.list(tag))

    def terminate(self, provider_id: str) -> None:
        """See Provider."""
        self._within("terminate", lambda: self._inner.terminate(provider_id))

    def livecheck(self, provider_id: str, description: VmDescription) -> None:
        """See Provider."""
        self._within("livecheck", lambda: self._inner.livecheck(provider_id, description))

    def reboot(self, provider_id: str) -> bool:
        """See Provider."""
        return self._within("reboot", lambda: self._inner.reboot(provider_id))

    def release(self, provider_id: str) -> None:
        """See Provider."""
        self._within("release", lambda: self._inner.release(provider_id))

    def price(self, spec: VmSpec) -> float | None:
        """See Provider."""
        return self._within("price", lambda: self._inner.price(spec))

    @property
    def tells_prices(self) -> bool:
        """See Provider."""
        return self._inner.tells_prices

    @property
    def has_release(self) -> bool:
        """See Provider."""
        return self._inner.has_release

    def validate(self, settings: Mapping[str, Any]) -> None:
        """See Provider; it asks nobody."""
        self._inner.validate(settings)

    def _within(self, call: str, work: Callable[[], T]) -> T:
        kind, limit_s = self._inner.kind, self.deadline_s(call)
        with _lock:
            hung = _hung.setdefault(kind, set())
            hung -= {thread for thread in hung if not thread.is_alive()}
            if len(hung) >= MOST_HUNG:
                raise TransientProviderError(
                    f"{len(hung)} calls of the provider {kind} hang: it is not asked to {call}"
                )
        answer: builtins.list[T] = []
        failure: builtins.list[BaseException] = []

        def ask() -> None:
            try:
                answer.append(work())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=ask, name=f"remuda-{kind}-{call}", daemon=True)
        thread.start()
        thread.join(limit_s)
        if thread.is_alive():
            with _lock:
                hung.add(thread)
            log.warning("the provider %s did not answer %s in %g s", kind, call, limit_s)
            raise TransientProviderError(
                f"the provider {kind} did not answer {call} in {limit_s:g} s"
            )
        if failure:
            raise failure[0]
        return answer[0]
