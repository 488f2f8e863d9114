"""What a pool of libvirt's virtual machines is told: by whom, from what, how big, how reached."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remuda.checks import shown, text_of, whole
from remuda.errors import BadInput

__all__ = ["ACCELS", "GuestImage", "GuestSettings", "guests_of"]

ACCELS = ("auto", "kvm", "tcg")
NETWORKS = "user, network:NAME or bridge:NAME"
FORMATS = ("qcow2", "raw")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_NETWORK = re.compile(r"user|(network|bridge):[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")
_URI = re.compile(r"qemu(\+[a-z0-9]+)?://\S*")
_STORAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}|/[^\s<>&\"']+")
_NUMBERS = {
    "memory_bytes": (32 << 20, 1 << 50),
    "cores": (1, 4096),
    "disk_bytes": (1 << 20, 1 << 60),
}
_TEXTS = ("uri", "key_file", "user", "network", "storage", "accel")
_IMAGE = ("disk", "format", "kernel", "initrd", "cmdline")


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What VMs are made of; paths are libvirt's host's. With a `kernel` it is booted directly.

    `disk`: a file, or a volume of the storage.
    """

    disk: str
    format: str = "qcow2"
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """A pool's settings. `key_file`: the private key, on the workers, that logs in as `user`.

    `images`: by name; an image that is not among them is a file or volume itself. `network`: user,
    network:NAME or bridge:NAME. `storage`: the storage pool that takes the VMs' disks, or a folder
    on libvirt's host. `cores` and `memory_bytes`: 0 if as many as slots, and as the pool's VMs have.
    `disk_bytes`: 0 if as big as the image. `accel`: KVM, emulation (tcg), or auto: KVM if it works.
    """

    key_file: str
    uri: str = "qemu:///system"
    user: str = "remuda"
    network: str = "user"
    storage: str = "default"
    accel: str = "auto"
    cores: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    images: Mapping[str, GuestImage] = field(default_factory=dict)

    def image(self, name: str) -> GuestImage:
        """Return the image of a name; raises BadInput if it names none."""
        if name in self.images:
            return self.images[name]
        if name == "default":
            raise BadInput(
                "a libvirt pool needs an image",
                hint="--image FILE, or --image NAME and the setting images",
            )
        return GuestImage(name)


def guests_of(settings: Mapping[str, Any]) -> GuestSettings:
    """Return the settings of a libvirt pool; raises BadInput naming the wrong one."""
    known = (*_TEXTS, *_NUMBERS, "images")
    unknown = sorted(str(key) for key in settings if key not in known)
    if unknown:
        raise BadInput(
            f"the libvirt provider has no setting {', '.join(unknown)[:200]}",
            hint=f"settings: {', '.join(known)}",
        )
    texts: dict[str, Any] = {
        key: _line(key, settings[key]) for key in _TEXTS if settings.get(key) is not None
    }
    if not texts.get("key_file"):
        raise BadInput(
            "key_file is missing: the private key that logs in to the VMs",
            hint="ssh-keygen -t ed25519 -N '' -f FILE, on every worker",
        )
    _match("uri", texts, _URI, "a libvirt URI such as qemu:///system")
    _match("user", texts, _USER, "a user's name")
    _match("network", texts, _NETWORK, NETWORKS)
    _match("storage", texts, _STORAGE, "a storage pool of libvirt, or a folder's path")
    if texts.get("accel", "auto") not in ACCELS:
        raise BadInput(f"accel must be one of {', '.join(ACCELS)}, not {shown(texts['accel'])}")
    numbers: dict[str, Any] = {
        key: whole(key, settings[key], least=least, most=most)
        for key, (least, most) in _NUMBERS.items()
        if settings.get(key) is not None
    }
    return GuestSettings(**texts, **numbers, images=_images(settings.get("images")))


def _images(value: Any) -> dict[str, GuestImage]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(
            f"images must be a mapping, not {shown(value)}",
            hint='"images": {"debian-12": "/var/lib/libvirt/images/debian-12.qcow2"}',
        )
    return {str(name): _image(f"images[{shown(name)}]", given) for name, given in value.items()}


def _image(what: str, value: Any) -> GuestImage:
    if isinstance(value, str):
        value = {"disk": value}
    if not isinstance(value, Mapping):
        raise BadInput(f"{what} must be a path or a mapping, not {shown(value)}")
    unknown = sorted(str(key) for key in value if key not in _IMAGE)
    if unknown:
        raise BadInput(
            f"{what} has no key {', '.join(unknown)[:200]}", hint=f"keys: {', '.join(_IMAGE)}"
        )
    texts = {
        key: _line(f"{what}.{key}", given) for key, given in value.items() if given is not None
    }
    if not texts.get("disk"):
        raise BadInput(f"{what}.disk is missing")
    for key in ("kernel", "initrd"):
        if texts.get(key) and not texts[key].startswith("/"):
            raise BadInput(f"{what}.{key} must be a path from the root on, not {shown(texts[key])}")
    if texts.get("format", "qcow2") not in FORMATS:
        raise BadInput(f"{what}.format must be one of {', '.join(FORMATS)}")
    if not texts.get("kernel") and (texts.get("initrd") or texts.get("cmdline")):
        raise BadInput(f"{what} has initrd or cmdline, but no kernel")
    return GuestImage(**texts)


def _match(key: str, texts: Mapping[str, str], pattern: re.Pattern[str], meaning: str) -> None:
    if key in texts and not pattern.fullmatch(texts[key]):
        raise BadInput(f"{key} must be {meaning}, not {shown(texts[key])}")


def _line(what: str, value: Any) -> str:
    text = text_of(what, value, most=4096).strip()
    if not text.isprintable():
        raise BadInput(f"{what} must be one line of text")
    return text
