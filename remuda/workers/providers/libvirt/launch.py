"""The way of one VM up: domain, disks, emulator, with KVM or without."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from remuda.errors import TransientProviderError
from remuda.guests import GuestImage, GuestSettings
from remuda.workers.providers.base import VmSpec
from remuda.workers.providers.libvirt.hypervisor import code_of, libvirt, unless
from remuda.workers.providers.libvirt.machine import About, domain_xml, machine_of
from remuda.workers.providers.libvirt.volumes import make_volumes, remove_volumes, storage_of

__all__ = ["Launch"]

log = logging.getLogger(__name__)
RACE_S = 15.0  # for another worker, which makes the same VM, to be done with its disk
KVM_AGAIN_S = 600.0  # for so long KVM is not tried again where it did not work

_without_kvm: dict[str, float] = {}  # URI: since when, on the monotonic clock


class Launch:
    """One VM on its way up; each step does what is still missing, so it may be repeated and raced."""

    def __init__(
        self,
        connection: Any,
        spec: VmSpec,
        about: About,
        *,
        guests: GuestSettings,
        image: GuestImage,
        seed: bytes,
    ) -> None:
        """`seed`: the content of the seed's disk."""
        self.connection, self.spec, self.about = connection, spec, about
        self.guests, self.image, self.seed = guests, image, seed

    def run(self) -> None:
        """Have the VM run; nothing is done to one that does."""
        with unless("NO_DOMAIN"):
            if self.connection.lookupByUUIDString(self.about.uuid).isActive():
                return
        accels = self._accels()
        for accel in accels:
            try:
                self._start(accel)
            except libvirt().libvirtError as error:
                if accel == accels[-1]:
                    raise
                log.warning("no KVM at %s, emulation is tried: %s", self.guests.uri, error)
            else:
                if accel != accels[0]:
                    _without_kvm[self.guests.uri] = time.monotonic()
                return

    def _accels(self) -> list[str]:
        """Return what to try, in order. Where KVM is not even said to work it is not tried."""
        if self.guests.accel != "auto":
            return [self.guests.accel]
        if time.monotonic() - _without_kvm.get(self.guests.uri, float("-inf")) < KVM_AGAIN_S:
            return ["tcg"]
        return ["kvm", "tcg"] if _kvm_is_offered(self.connection) else ["tcg"]

    def _start(self, accel: str) -> None:
        storage = storage_of(self.connection, self.guests)
        domain = self.connection.defineXML(
            domain_xml(
                self.spec,
                self.about,
                self.guests,
                self.image,
                accel=accel,
                architecture=self.connection.getInfo()[0],
                storage=storage.name(),
            )
        )
        args = (self.connection, storage, self.about, self.guests, self.image)
        mine = make_volumes(*args, seed=self.seed)
        if not _begin(domain, patience_s=0 if mine else RACE_S):
            remove_volumes(storage, self.about)
            raise TransientProviderError(f"VM {self.spec.name} was terminated while it was made")


def _begin(domain: Any, *, patience_s: float) -> bool:
    """Start a domain, if it does not run; False if it is gone.

    For `patience_s` it is tried again, as somebody else may still be making its disk.
    """
    deadline = time.monotonic() + patience_s
    pause = threading.Event()  # never set
    while True:
        try:
            domain.create()
            return True
        except libvirt().libvirtError as error:
            if code_of(error) == "NO_DOMAIN":
                return False
            if code_of(error) == "OPERATION_INVALID" and domain.isActive():
                return True
            if time.monotonic() >= deadline:
                raise
        pause.wait(0.2)


def _kvm_is_offered(connection: Any) -> bool:
    """Return whether libvirt says that there is KVM, which does not mean that anything boots."""
    architecture = connection.getInfo()[0]
    try:
        connection.getDomainCapabilities(None, architecture, machine_of(architecture), "kvm")
    except libvirt().libvirtError:
        return False
    return True
