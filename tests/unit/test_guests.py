"""What is said of libvirt's VMs: the settings of a pool, and the XML that follows from them."""

from __future__ import annotations

import uuid
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from remuda.errors import BadInput
from remuda.guests import GuestImage, guests_of
from remuda.workers.providers.base import VmSpec
from remuda.workers.providers.libvirt.machine import (
    NAMESPACE,
    About,
    about_of,
    domain_xml,
    forwarded_port,
    overlay_xml,
    uuid_of,
)

KEY = {"key_file": "/etc/remuda/key"}
TOKEN = "0f4e3c52-5f0e-4a53-8f46-7d0f8a4f6f3a"


def xml_of(
    spec: VmSpec, image: GuestImage | None = None, accel: str = "tcg", **more: Any
) -> ET.Element:
    settings = guests_of({**KEY, **more})
    text = domain_xml(
        spec,
        About(spec.pool, TOKEN),
        settings,
        image or settings.image("/images/debian.qcow2"),
        accel=accel,
        architecture="x86_64",
        storage="default",
    )
    return ET.fromstring(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "key_file is missing"),
        ({"key_file": ""}, "key_file is missing"),
        ({"key_file": 7}, "key_file must be text"),
        ({"key_file": "a\nb"}, "key_file must be one line"),
        ({**KEY, "colour": "red"}, "no setting colour"),
        ({**KEY, "uri": "here"}, "uri must be a libvirt URI"),
        ({**KEY, "uri": "xen:///system"}, "uri must be a libvirt URI"),
        ({**KEY, "user": "Robert'); --"}, "user must be"),
        ({**KEY, "network": "bridge:"}, "network must be user, network:NAME or bridge:NAME"),
        ({**KEY, "network": "network:<x>"}, "network must be"),
        ({**KEY, "storage": "../up"}, "storage must be"),
        ({**KEY, "storage": "/a b"}, "storage must be"),
        ({**KEY, "accel": "warp"}, "accel must be one of auto, kvm, tcg"),
        ({**KEY, "cores": 0}, "cores must be a whole number from 1"),
        ({**KEY, "cores": True}, "cores must be"),
        ({**KEY, "memory_bytes": -1}, "memory_bytes must be"),
        ({**KEY, "memory_bytes": "1G"}, "memory_bytes must be"),
        ({**KEY, "disk_bytes": 10**40}, "disk_bytes must be"),
        ({**KEY, "images": ["x"]}, "images must be a mapping"),
        ({**KEY, "images": {"a": 7}}, r"images\['a'\] must be a path or a mapping"),
        ({**KEY, "images": {"a": {}}}, r"images\['a'\]\.disk is missing"),
        ({**KEY, "images": {"a": {"disk": "x", "colour": 1}}}, "no key colour"),
        ({**KEY, "images": {"a": {"disk": "x", "format": "vmdk"}}}, "format must be one of"),
        ({**KEY, "images": {"a": {"disk": "x", "kernel": "vmlinuz"}}}, "path from the root"),
        ({**KEY, "images": {"a": {"disk": "x", "cmdline": "quiet"}}}, "but no kernel"),
        ({**KEY, "images": {"a": {"disk": "\0"}}}, "NUL"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        guests_of(settings)


def test_an_image_is_one_of_the_settings_or_a_file() -> None:
    kernel = {"disk": "/d.qcow2", "kernel": "/vmlinuz", "cmdline": "quiet"}
    guests = guests_of({**KEY, "images": {"a": "/a.qcow2", "b": kernel}})
    assert guests.image("a") == GuestImage("/a.qcow2")
    assert guests.image("b") == GuestImage("/d.qcow2", "qcow2", "/vmlinuz", "", "quiet")
    assert guests.image("/c.qcow2") == GuestImage("/c.qcow2")
    with pytest.raises(BadInput, match="needs an image"):
        guests.image("default")
    assert guests_of({**KEY, "images": {"default": "/d"}}).image("default") == GuestImage("/d")


def test_a_token_is_one_uuid() -> None:
    assert uuid_of(TOKEN) == TOKEN
    odd = [TOKEN.upper(), "", "token", "ü" * 500, f"{{{TOKEN}}}"]
    assert len({uuid_of(token) for token in [TOKEN, *odd]}) == 6
    assert all(str(uuid.UUID(uuid_of(token))) == uuid_of(token) for token in odd)


@pytest.mark.parametrize("name", ["vm-1", "../../etc", "<x>&\"'", "ü\n\0", "", "-" * 99])
def test_a_domain_of_any_name(name: str) -> None:
    domain = xml_of(VmSpec(name, "a<b>&\n", 2))
    assert domain.findtext("uuid") == TOKEN
    called = domain.findtext("name") or ""
    assert called.startswith("remuda-")
    assert called.endswith(TOKEN)
    assert "/" not in called
    ours = domain.find(f"metadata/{{{NAMESPACE}}}vm")
    assert ours is not None
    ours.tag = "vm"  # as libvirt gives it back
    assert about_of(ET.tostring(ours, encoding="unicode")) == About("a<b>&\n", TOKEN)


def test_how_big_a_vm_is() -> None:
    small = xml_of(VmSpec("vm", "p", 2))
    assert (small.findtext("vcpu"), small.findtext("memory")) == ("2", str(1 << 30))
    told = xml_of(VmSpec("vm", "p", 2, memory_bytes=1 << 31))
    assert told.findtext("memory") == str(1 << 31)
    set_ = xml_of(VmSpec("vm", "p", 2, memory_bytes=1 << 31), cores=1, memory_bytes=1 << 32)
    assert (set_.findtext("vcpu"), set_.findtext("memory")) == ("1", str(1 << 32))


def test_how_it_boots_and_is_reached() -> None:
    disk = xml_of(VmSpec("vm", "p", 1), accel="kvm", network="network:lab")
    assert (disk.get("type"), disk.find("cpu[@mode='host-passthrough']") is not None) == (
        "kvm",
        True,
    )
    assert disk.find("os/boot[@dev='hd']") is not None
    assert disk.find("devices/interface[@type='network']/source[@network='lab']") is not None
    assert disk.find("{http://libvirt.org/schemas/domain/qemu/1.0}commandline") is None
    bridge = xml_of(VmSpec("vm", "p", 1), network="bridge:br0")
    assert bridge.find("devices/interface[@type='bridge']/source[@bridge='br0']") is not None
    kernel = GuestImage("/d", "raw", "/vmlinuz", "/initrd", "quiet")
    direct = xml_of(VmSpec("vm", "p", 1), kernel)
    assert direct.get("type") == "qemu"
    assert [direct.findtext(f"os/{key}") for key in ("kernel", "initrd", "cmdline")] == [
        "/vmlinuz",
        "/initrd",
        "quiet",
    ]
    words = [
        arg.get("value") for arg in direct.iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg")
    ]
    assert "user,id=remuda,hostfwd=tcp:127.0.0.1:0-:22" in words
    backing = ET.fromstring(overlay_xml("x", base="/a&b", format="raw")).find("backingStore")
    assert backing is not None
    assert backing.findtext("path") == "/a&b"


@pytest.mark.parametrize(
    "metadata", ["", "<vm/>", "<vm pool='p'/>", "<other token='t'/>", "junk", "<vm token='t'"]
)
def test_what_is_none_of_ours(metadata: str) -> None:
    assert about_of(metadata) is None


def test_the_forwarded_port() -> None:
    said = (
        "Hub -1 (remuda):\r\n"
        "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
        "  TCP[ESTABLISHED]   21       127.0.0.1 50000       10.0.2.15    22     0     0\r\n"
        "  TCP[HOST_FORWARD]  12       127.0.0.1 43211       10.0.2.15    22     0     0\r\n"
    )
    assert forwarded_port(said) == 43211
    assert forwarded_port("") is None
    assert forwarded_port(said.replace("HOST_FORWARD", "SYN_SENT")) is None
