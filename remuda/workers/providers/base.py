"""The seam between Remuda and what makes and removes VMs.

A VM is asked for with a token that the caller has recorded before: whoever repeats a `spawn` after
a crash gets the same VM, and `list` finds those of which no answer ever came.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

__all__ = ["Provider", "VmDescription", "VmSpec", "VmState"]

VmState = Literal["pending", "running", "stopped", "gone"]


@dataclass(frozen=True, slots=True)
class VmSpec:
    """The VM that is wanted. `memory_bytes` None: what the machine has; `image`: its provider's name."""

    name: str
    pool: str
    slots: int
    memory_bytes: int | None = None
    heartbeat_s: float = 5.0
    image: str = "default"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VmDescription:
    """A VM as the provider sees it; `address` is for the backend to understand."""

    provider_id: str
    state: VmState
    address: Mapping[str, Any] = field(default_factory=dict)
    private_ip: str | None = None
    public_ip: str | None = None
    token: str = ""


class Provider(ABC):
    """Makes and removes VMs of one kind; safe to use from many threads and processes."""

    kind: ClassVar[str]

    def of_pool(self, settings: Mapping[str, Any]) -> Provider:
        """Return the provider as a pool's settings have it, where it depends on them."""
        return self

    @abstractmethod
    def spawn(self, spec: VmSpec, token: str) -> str:
        """Ask for a VM and return its provider_id; it may still be pending then.

        The same token always gives the same VM, also when asked twice at once. Raises a
        ProviderError; then there is no such VM, or `list` shows it.
        """

    @abstractmethod
    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        """Return what is known of these VMs; one that is missing in the answer is gone."""

    @abstractmethod
    def list(self, tag: str) -> list[VmDescription]:
        """Return every VM of the pool `tag`, of all pools if it is empty; none is left out."""

    @abstractmethod
    def terminate(self, provider_id: str) -> None:
        """Remove a VM and everything that runs on it; harmless when repeated or unknown.

        Returns when that is certain, or has been asked for and `describe` will tell. Raises a
        ProviderError if it has to be tried again.
        """

    @abstractmethod
    def validate(self, settings: Mapping[str, Any]) -> None:
        """Raise BadInput naming what is wrong in a pool's provider settings."""
