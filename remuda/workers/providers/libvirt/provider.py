"""The `libvirt` provider: a VM is a domain of a host that libvirt manages, with a disk of its own.

The domain is defined before anything else is made and removed after everything else, so whatever a
crash leaves behind, `list` shows the domain it belongs to.
"""

from __future__ import annotations

import builtins
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from remuda.config import Settings
from remuda.errors import BadInput, ImageError, PermanentProviderError
from remuda.guests import GuestSettings, guests_of
from remuda.workers.providers.base import Provider, VmDescription, VmSpec
from remuda.workers.providers.firstboot import PoolKey, address_of, read_key, user_data
from remuda.workers.providers.libvirt.hypervisor import (
    hypervisor,
    libvirt,
    monitor,
    unless,
)
from remuda.workers.providers.libvirt.launch import Launch
from remuda.workers.providers.libvirt.machine import (
    NAMESPACE,
    About,
    about_of,
    forwarded_port,
)
from remuda.workers.providers.libvirt.seed import seed_image
from remuda.workers.providers.libvirt.volumes import remove_volumes, storage_of

__all__ = ["LibvirtProvider"]

SPAWN_S = 120.0  # to make the disks and start the emulator; the boot itself is not waited for
LOOK_S = 30.0
END_S = 90.0  # libvirt itself gives an emulator that does not end 30 s
ENDING_S = 2.0  # between the end of an emulator and libvirt's knowing of it
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class LibvirtProvider(Provider):
    """Domains of one libvirt, reached by SSH through a forwarded port or by the address of a lease."""

    kind = "libvirt"

    def __init__(self, settings: Settings, guests: GuestSettings | None = None) -> None:
        """Know of no libvirt yet, but that of `guests`; see `of_pool`."""
        self._settings = settings
        self._given = guests

    def of_pool(self, settings: Mapping[str, Any]) -> LibvirtProvider:
        """Return the provider with a pool's libvirt; raises PermanentProviderError."""
        try:
            return LibvirtProvider(self._settings, guests_of(settings))
        except BadInput as error:
            raise PermanentProviderError(error.message, hint=error.hint) from error

    def spawn(self, spec: VmSpec, token: str) -> str:
        """Define the domain, make its disks, start it; returns when its emulator runs."""
        guests = self._given
        if guests is None:
            return self.of_pool(spec.settings).spawn(spec, token)
        about = About(spec.pool, token)
        try:
            image = guests.image(spec.image)
        except BadInput as error:
            raise ImageError(error.message, hint=error.hint) from error
        key = read_key(guests.key_file)
        data = user_data(key, token, user=guests.user, hostname=spec.name)
        try:
            seed = seed_image(data, instance_id=about.uuid, hostname=spec.name)
        except ImportError as error:
            raise PermanentProviderError(
                f"pycdlib is not installed here: {error}", hint="pip install 'remuda[libvirt]'"
            ) from error

        def work(connection: Any) -> None:
            Launch(connection, spec, about, guests=guests, image=image, seed=seed).run()

        hypervisor(guests.uri, work, deadline_s=SPAWN_S)
        return about.uuid

    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        """Ask libvirt; a domain whose emulator has ended is stopped."""
        wanted = [vm_id for vm_id in ids if _UUID.fullmatch(vm_id)]
        if not wanted:
            return {}
        guests, key = self._guests(), read_key(self._guests().key_file)

        def work(connection: Any) -> dict[str, VmDescription]:
            found = {}
            for vm_id in wanted:
                with unless("NO_DOMAIN"):
                    domain = connection.lookupByUUIDString(vm_id)
                    about = _about(domain)
                    if about is not None:
                        found[vm_id] = _described(domain, about, guests, key)
            return found

        return hypervisor(guests.uri, work, deadline_s=LOOK_S)

    def list(self, tag: str) -> builtins.list[VmDescription]:
        """Ask libvirt for all its domains, and them whose they are."""
        guests, key = self._guests(), read_key(self._guests().key_file)

        def work(connection: Any) -> builtins.list[VmDescription]:
            found = []
            for domain in connection.listAllDomains():
                with unless("NO_DOMAIN"):  # removed since
                    about = _about(domain)
                    if about is not None and tag in ("", about.pool):
                        found.append(_described(domain, about, guests, key))
            return found

        return hypervisor(guests.uri, work, deadline_s=LOOK_S)

    def terminate(self, provider_id: str) -> None:
        """End the emulator, remove the disks and the domain; all is certain when this returns."""
        if not _UUID.fullmatch(provider_id):
            return
        guests = self._guests()

        def work(connection: Any) -> None:
            with unless("NO_DOMAIN"):
                domain = connection.lookupByUUIDString(provider_id)
                about = _about(domain)
                if about is not None:
                    _remove(connection, domain, about, guests)

        hypervisor(guests.uri, work, deadline_s=END_S)

    def validate(self, settings: Mapping[str, Any]) -> None:
        """Accept what `remuda.guests.GuestSettings` has."""
        guests_of(settings)

    def _guests(self) -> GuestSettings:
        if self._given is None:
            raise PermanentProviderError("the libvirt provider needs the settings of a pool")
        return self._given


def _about(domain: Any) -> About | None:
    """Return whose a domain is; None if it is none of ours."""
    api = libvirt()
    with unless("NO_DOMAIN_METADATA"):
        element = api.VIR_DOMAIN_METADATA_ELEMENT
        found = about_of(domain.metadata(element, NAMESPACE, api.VIR_DOMAIN_AFFECT_CURRENT))
        return found if found and found.uuid == domain.UUIDString() else None
    return None


def _described(domain: Any, about: About, guests: GuestSettings, key: PoolKey) -> VmDescription:
    """Return what is known; a VM is pending until it has an address."""
    whose = VmDescription(about.uuid, "pending", token=about.token, pool=about.pool)
    if not domain.isActive():
        return replace(whose, state="stopped")
    address, port = None, 22
    try:
        _, most_kib, _, cores, _ = domain.info()
        whose = replace(whose, cores=cores, memory_bytes=int(most_kib) << 10)
        if guests.network == "user":
            port = forwarded_port(monitor(domain, "info usernet")) or 0
            address = "127.0.0.1" if port else None
        else:
            address = _leased(domain)
    except libvirt().libvirtError:
        if not _is_ending(domain):
            raise
        return replace(whose, state="stopped")
    if address is None:
        return whose
    way = address_of(key, about.token, address, user=guests.user, port=port)
    return replace(whose, state="running", address=way, private_ip=address)


def _is_ending(domain: Any) -> bool:
    """Return whether a domain that could not be asked has just ended: libvirt is told a little later."""
    deadline = time.monotonic() + ENDING_S
    pause = threading.Event()  # never set
    while domain.isActive():
        if time.monotonic() >= deadline:
            return False
        pause.wait(0.05)
    return True


def _leased(domain: Any) -> str | None:
    """Return the IPv4 address libvirt's DHCP gave the VM, else one its host has seen it use."""
    api = libvirt()
    for source in (
        api.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
        api.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
    ):
        for card in (domain.interfaceAddresses(source) or {}).values():
            for found in card["addrs"] or ():
                if found["type"] == api.VIR_IP_ADDR_TYPE_IPV4:
                    return str(found["addr"])
    return None


def _remove(connection: Any, domain: Any, about: About, guests: GuestSettings) -> None:
    """Remove all of a VM, the domain last."""
    api = libvirt()
    if domain.isActive():
        with unless("OPERATION_INVALID"):
            domain.destroy()
    remove_volumes(storage_of(connection, guests), about)
    domain.undefineFlags(
        api.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | api.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | api.VIR_DOMAIN_UNDEFINE_NVRAM
    )
