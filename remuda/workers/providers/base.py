"""The seam between Remuda and what makes and removes VMs.

A VM is asked for with a token that the caller has recorded before: whoever repeats a `spawn` after
a crash gets the same VM, and `list` finds those of which no answer ever came.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

__all__ = ["DEADLINES_S", "Provider", "VmDescription", "VmSpec", "VmState"]

VmState = Literal["pending", "running", "stopped", "gone"]

# What each call may take, in seconds, before the caller goes on without it.
DEADLINES_S: Mapping[str, float] = {
    "spawn": 180.0,
    "describe": 60.0,
    "list": 120.0,
    "terminate": 180.0,
    "livecheck": 60.0,
    "release": 180.0,
    "reboot": 60.0,
    "price": 20.0,
}


@dataclass(frozen=True, slots=True)
class VmSpec:
    """The VM that is wanted. `memory_bytes` None: what the machine has; `image`: its provider's name.

    `settings`: the pool's, with those of the offer over them. `offer`: its name, "" without one.
    `max_price`: the most to pay, per hour and in the offer's currency; None: not told.
    `reserved_group`: the group of hosts to take it from, "": from those of no group.
    """

    name: str
    pool: str
    slots: int
    memory_bytes: int | None = None
    heartbeat_s: float = 5.0
    image: str = "default"
    settings: Mapping[str, Any] = field(default_factory=dict)
    offer: str = ""
    max_price: float | None = None
    reserved_group: str = ""


@dataclass(frozen=True, slots=True)
class VmDescription:
    """A VM as the provider sees it; `address` is for the backend to understand.

    `pool`: the tag it was made with; "" if the provider cannot tell.
    `interruption_at`: when the provider takes, or took, the machine away on its own account, such as a
    spot instance that others pay more for. It is told before, but not long: two minutes are usual.
    `price`: for an hour, in the currency of the pool's offers, where the provider knows it: it then
    counts instead of the offer's.
    `cores`, `memory_bytes`: what whoever makes the machine says that it has, such as its flavor or its
    entry in a list of hosts; None: nobody says. One that has less is not taken.
    """

    provider_id: str
    state: VmState
    address: Mapping[str, Any] = field(default_factory=dict)
    private_ip: str | None = None
    public_ip: str | None = None
    token: str = ""
    interruption_at: datetime | None = None
    pool: str = ""
    price: float | None = None
    cores: int | None = None
    memory_bytes: int | None = None


class Provider(ABC):
    """Makes and removes VMs of one kind; safe to use from many threads and processes."""

    kind: ClassVar[str]

    def of_pool(self, settings: Mapping[str, Any]) -> Provider:
        """Return the provider as a pool's settings have it, where it depends on them."""
        return self

    def deadline_s(self, call: str) -> float:
        """Return what a call may take, in seconds; its caller goes on after that.

        The caller takes it for a TransientProviderError; the call itself may end later, unheard.
        """
        return DEADLINES_S[call]

    @abstractmethod
    def spawn(self, spec: VmSpec, token: str) -> str:
        """Ask for a VM and return its provider_id; it may still be pending then.

        The same token always gives the same VM, also when asked twice at once. Raises a
        ProviderError; then there is no such VM, or `list` shows it. What is done about each:

            TransientProviderError   asked again a little later, within the VM's budget
            CapacityError, QuotaExceeded
                                     the pool's next offer is asked, and this one not for a while
            ImageError               the image is in ERROR until somebody resets it
            ProviderAuthError, PermanentProviderError
                                     the pool pauses, and says why
        """

    @abstractmethod
    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        """Return what is known of these VMs; one that is missing in the answer is gone.

        Raises a ProviderError if it cannot tell; nothing is taken for gone on silence.
        """

    @abstractmethod
    def list(self, tag: str) -> list[VmDescription]:
        """Return every VM of the pool `tag`, of all pools if it is empty; none is left out.

        Raises a ProviderError rather than return a part of them.
        """

    @abstractmethod
    def terminate(self, provider_id: str) -> None:
        """Remove a VM and everything that runs on it; harmless when repeated or unknown.

        Returns when that is certain, or has been asked for and `describe` will tell. Raises a
        ProviderError if it has to be tried again.
        """

    def livecheck(  # noqa: B027 - optional
        self, provider_id: str, description: VmDescription
    ) -> None:
        """Look closer at a VM than `describe` does; raises if it is not well.

        VmUnreachable or a PermanentProviderError: the VM is not fit for work.
        TransientProviderError: it could not be told. By default there is nothing to look at.
        """

    def reboot(self, provider_id: str) -> bool:
        """Have a VM's machine restart, and return True; by default False: its runner is told to.

        Raises a ProviderError. Harmless when repeated.
        """
        return False

    def release(self, provider_id: str) -> None:  # noqa: B027 - optional
        """Make a VM ready for its next user, when a lease on it or all its work has ended.

        Raises a ProviderError if that failed; the VM is not to be used again then. By default there
        is nothing to do.
        """

    def price(self, spec: VmSpec) -> float | None:
        """Return what such a VM costs for an hour now, in its seller's currency; None: not known.

        It makes nothing, and is not a promise: what a VM that was made costs, `describe` tells.
        Raises a ProviderError if it cannot be told now. By default no price is known.
        """
        return None

    @property
    def tells_prices(self) -> bool:
        """Whether it is worth asking `price`."""
        return type(self).price is not Provider.price

    @property
    def has_release(self) -> bool:
        """Whether `release` does anything; if not, VMs are ready for others as they are."""
        return type(self).release is not Provider.release

    @abstractmethod
    def validate(self, settings: Mapping[str, Any]) -> None:
        """Raise BadInput naming what is wrong in a pool's provider settings."""
