"""The disks of VMs: volumes of a storage pool of libvirt, made and removed by libvirt on its own host."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from remuda.errors import ImageError, PermanentProviderError
from remuda.guests import GuestImage, GuestSettings
from remuda.workers.providers.libvirt.hypervisor import code_of, libvirt, unless
from remuda.workers.providers.libvirt.machine import About, overlay_xml, seed_xml, storage_xml

__all__ = ["make_volumes", "remove_volumes", "storage_of"]

_ALLOCATED_S = 20.0  # for so long a volume that somebody else just makes is waited for


def storage_of(connection: Any, settings: GuestSettings) -> Any:
    """Return the storage pool; one that is a folder is made, with its folder, when it is missing."""
    api = libvirt()
    name = settings.storage
    if name.startswith("/"):
        name = f"remuda-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    try:
        found = connection.storagePoolLookupByName(name)
    except api.libvirtError as error:
        if code_of(error) != "NO_STORAGE_POOL":
            raise
        if name == settings.storage:
            raise PermanentProviderError(
                f"libvirt at {settings.uri} has no storage pool {name}",
                hint="set storage to one of `virsh pool-list`, or to the path of a folder there",
            ) from None
        build = api.VIR_STORAGE_POOL_CREATE_WITH_BUILD
        with unless("OPERATION_FAILED", "STORAGE_POOL_BUILT"):  # somebody made it just now
            return connection.storagePoolCreateXML(storage_xml(name, settings.storage), build)
        found = connection.storagePoolLookupByName(name)
    if not found.isActive():
        with unless("OPERATION_INVALID"):
            found.create()
    return found


def make_volumes(
    connection: Any,
    storage: Any,
    about: About,
    settings: GuestSettings,
    image: GuestImage,
    *,
    seed: bytes,
) -> bool:
    """Make the overlay of the image, if it is missing, and the seed; `seed` is written in any case.

    False if somebody else has made the overlay, or is still at it.
    """
    mine = False
    base = image.disk
    if not base.startswith("/"):
        try:
            base = storage.storageVolLookupByName(base).path()
        except libvirt().libvirtError as error:
            if code_of(error) != "NO_STORAGE_VOL":
                raise
            raise ImageError(
                f"storage {storage.name()} has no volume {base} to make VMs of"
            ) from error
    with unless("STORAGE_VOL_EXIST"):
        overlay = storage.createXML(overlay_xml(about.disk, base=base, format=image.format))
        mine = True
        size = overlay.info()[1]
        if settings.disk_bytes and settings.disk_bytes < size:
            raise PermanentProviderError(
                f"disk_bytes is {settings.disk_bytes}, the image {image.disk} has {size} already"
            )
        if settings.disk_bytes > size:
            overlay.resize(settings.disk_bytes)
    with unless("STORAGE_VOL_EXIST"):
        storage.createXML(seed_xml(about.seed, size_bytes=len(seed)))
    stream = connection.newStream()
    volume = storage.storageVolLookupByName(about.seed)
    until = time.monotonic() + _ALLOCATED_S
    while True:
        try:
            volume.upload(stream, 0, len(seed))
            break
        except libvirt().libvirtError as error:
            # Another who launches the same VM at this moment has it made.
            if code_of(error) != "OPERATION_INVALID" or time.monotonic() > until:
                raise
            time.sleep(0.05)
            stream = connection.newStream()
    rest = memoryview(seed)

    def more(_stream: Any, size: int, _opaque: Any) -> bytes:
        nonlocal rest
        sent, rest = rest[:size], rest[size:]
        return bytes(sent)

    stream.sendAll(more, None)
    stream.finish()
    return mine


def remove_volumes(storage: Any, about: About) -> None:
    """Remove them; harmless if they are gone."""
    for name in (about.disk, about.seed):
        with unless("NO_STORAGE_VOL"):
            storage.storageVolLookupByName(name).delete()
