"""What libvirt is told of a VM, as XML; what a domain is found to be. Pure.

A VM is a persistent domain: if its emulator dies, the domain still tells of it until it is removed.
Its UUID follows from the token, so a token is one VM, whoever asks for it and however often.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from remuda.guests import GuestImage, GuestSettings
from remuda.workers.providers.base import VmSpec

__all__ = [
    "NAMESPACE",
    "About",
    "about_of",
    "domain_xml",
    "forwarded_port",
    "machine_of",
    "overlay_xml",
    "seed_xml",
    "storage_xml",
    "uuid_of",
]

NAMESPACE = "https://remuda.dev/libvirt/1"
GIB = 1 << 30
NETDEV = "remuda"
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_TOKENS = uuid.UUID("6b1f6d0e-7a5c-4a43-9f0b-6d8f0c0a7f11")

ET.register_namespace("remuda", NAMESPACE)
ET.register_namespace("qemu", _QEMU)


@dataclass(frozen=True, slots=True)
class About:
    """What a domain of ours says of itself."""

    pool: str
    token: str

    @property
    def uuid(self) -> str:
        """The domain's UUID."""
        return uuid_of(self.token)

    @property
    def disk(self) -> str:
        """The name of the volume that has what the VM writes."""
        return f"remuda-{self.uuid}.qcow2"

    @property
    def seed(self) -> str:
        """The name of the volume that has what its first boot needs."""
        return f"remuda-{self.uuid}-seed.iso"


def uuid_of(token: str) -> str:
    """Return the UUID of the VM of a token: the token itself if it is one."""
    try:
        if str(uuid.UUID(token)) == token:
            return token
    except ValueError:
        pass
    return str(uuid.uuid5(_TOKENS, token))


def about_of(metadata: str) -> About | None:
    """Return what a domain says of itself; None if it is none of ours. Libvirt takes the namespace off."""
    try:
        found = ET.fromstring(metadata)
    except ET.ParseError:
        return None
    if found.tag != "vm" or not found.get("token"):
        return None
    return About(found.get("pool", ""), found.get("token", ""))


def overlay_xml(name: str, *, base: str, format: str) -> str:
    """Return a volume as big as the file `base`, which is read until something else is written."""
    volume = ET.Element("volume")
    _add(volume, "name", name)
    _add(_add(volume, "target"), "format", type="qcow2")
    backing = _add(volume, "backingStore")
    _add(backing, "path", base)
    _add(backing, "format", type=format)
    return ET.tostring(volume, encoding="unicode")


def seed_xml(name: str, *, size_bytes: int) -> str:
    """Return a volume of so many bytes."""
    volume = ET.Element("volume")
    _add(volume, "name", name)
    for what in ("capacity", "allocation"):
        _add(volume, what, str(size_bytes), unit="bytes")
    _add(_add(volume, "target"), "format", type="raw")
    return ET.tostring(volume, encoding="unicode")


def storage_xml(name: str, folder: str) -> str:
    """Return a storage pool that is a folder."""
    pool = ET.Element("pool", type="dir")
    _add(pool, "name", name)
    _add(_add(pool, "target"), "path", folder)
    return ET.tostring(pool, encoding="unicode")


def domain_xml(
    spec: VmSpec,
    about: About,
    settings: GuestSettings,
    image: GuestImage,
    *,
    accel: str,
    architecture: str,
    storage: str,
) -> str:
    """Return the domain of a VM: `accel` kvm or tcg, `storage` the name of the pool of its volumes."""
    domain = ET.Element("domain", type="kvm" if accel == "kvm" else "qemu")
    stem = re.sub(r"[^A-Za-z0-9_.-]", "-", spec.name)[:64].strip("-") or "vm"
    _add(domain, "name", f"remuda-{stem}-{about.uuid}")
    _add(domain, "uuid", about.uuid)
    _add(domain, "title", _printable(f"{spec.pool}: {spec.name}"))
    ours = {"pool": about.pool, "token": about.token}
    ET.SubElement(_add(domain, "metadata"), f"{{{NAMESPACE}}}vm", ours)
    memory = settings.memory_bytes or spec.memory_bytes or GIB
    _add(domain, "memory", str(memory), unit="bytes")
    _add(domain, "vcpu", str(settings.cores or spec.slots))
    system = _add(domain, "os")
    _add(system, "type", "hvm", arch=architecture, machine=machine_of(architecture))
    for name in ("kernel", "initrd", "cmdline"):
        if getattr(image, name):
            _add(system, name, getattr(image, name))
    if not image.kernel:
        _add(system, "boot", dev="hd")
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(domain, "cpu", mode="host-passthrough" if accel == "kvm" else "maximum")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _add(domain, f"on_{event}", action)
    devices = _add(domain, "devices")
    _disk(devices, storage, about.disk, "vda", format="qcow2")
    _add(_disk(devices, storage, about.seed, "vdb", format="raw"), "readonly")
    _network(domain, devices, settings.network)
    _add(_add(devices, "serial", type="pty"), "target", port="0")
    _add(_add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    _add(devices, "memballoon", model="none")
    return ET.tostring(domain, encoding="unicode")


def _disk(
    devices: ET.Element, storage: str, volume: str, target: str, *, format: str
) -> ET.Element:
    """Add a disk. Nothing of it outlives the VM, so nothing is ever flushed."""
    disk = _add(devices, "disk", type="volume", device="disk")
    _add(disk, "driver", name="qemu", type=format, cache="unsafe")
    _add(disk, "source", pool=storage, volume=volume)
    _add(disk, "target", dev=target, bus="virtio")
    return disk


def _network(domain: ET.Element, devices: ET.Element, network: str) -> None:
    """Add the network card. For `user` the kernel itself chooses a free port of this host, port 0."""
    kind, _, name = network.partition(":")
    if kind != "user":
        card = _add(devices, "interface", type=kind)
        _add(card, "source", **{kind: name})
        _add(card, "model", type="virtio")
        return
    command = ET.SubElement(domain, f"{{{_QEMU}}}commandline")
    for word in (
        "-netdev",
        f"user,id={NETDEV},hostfwd=tcp:127.0.0.1:0-:22",
        "-device",
        f"virtio-net-pci,netdev={NETDEV},addr=0x1b",
    ):
        ET.SubElement(command, f"{{{_QEMU}}}arg", value=word)


def _add(
    parent: ET.Element, name: str, text: str | None = None, /, **attributes: str
) -> ET.Element:
    element = ET.SubElement(parent, name, attributes)
    element.text = text
    return element


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())


def forwarded_port(monitor: str) -> int | None:
    """Return the port of this host that leads to a VM's sshd, of what QEMU's `info usernet` says."""
    found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b", monitor)
    return int(found.group(1)) if found else None


def machine_of(architecture: str) -> str:
    """Return the machine type to ask for."""
    return "q35" if architecture == "x86_64" else "virt"
