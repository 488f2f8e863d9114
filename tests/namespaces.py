"""Hosts of one's own: network namespaces with addresses, joined to this machine by veth pairs."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.sshd import Sshd, running_sshd

NET = "10.213"  # of the tests' own namespaces


@dataclass(frozen=True)
class Namespace:
    """A network namespace; `address` is its own, the machine's end of the wire is `peer`."""

    name: str
    address: str
    peer: str
    link: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return what runs a command in it."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Pull the plug: nothing gets in or out, and nobody is told."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Put the plug back in."""
        _ip("link", "set", self.link, "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, stdin=subprocess.DEVNULL, capture_output=True)


@contextlib.contextmanager
def namespace(number: int) -> Iterator[Namespace]:
    """Make a namespace, and surely remove it; needs root."""
    own = f"{os.getpid() % 100000}-{number}"
    name, link = f"remuda-{own}", f"rm{own}"
    net = f"{NET}.{(os.getpid() + number // 64) % 256}"
    base = number % 64 * 4
    found = Namespace(name, f"{net}.{base + 2}", f"{net}.{base + 1}", link)
    _ip("netns", "add", name)
    try:
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{found.peer}/30", "dev", link)
        _ip("link", "set", link, "up")
        for words in (
            ("addr", "add", f"{found.address}/30", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", name, *words)
        yield found
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", link)
        _ip("netns", "del", name)


@contextlib.contextmanager
def network(count: int) -> Iterator[list[Namespace]]:
    """Make so many namespaces on one wire, each reaching the others and this machine; needs root."""
    own = f"{os.getpid() % 100000}"
    bridge, net = f"rmbr{own}", f"{NET}.{os.getpid() % 256}"
    with contextlib.ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        found = []
        for number in range(count):
            place = Namespace(
                f"remuda-lan-{own}-{number}",
                f"{net}.{number + 2}",
                f"{net}.1",
                f"rml{own}-{number}",
            )
            _ip("netns", "add", place.name)
            stack.callback(_ip, "netns", "del", place.name)
            peer = ("peer", "name", "eth0", "netns", place.name)
            _ip("link", "add", place.link, "type", "veth", *peer)
            _ip("link", "set", place.link, "master", bridge)
            _ip("link", "set", place.link, "up")
            _ip("-n", place.name, "addr", "add", f"{place.address}/24", "dev", "eth0")
            _ip("-n", place.name, "link", "set", "eth0", "up")
            _ip("-n", place.name, "link", "set", "lo", "up")
            found.append(place)
        yield found


@contextlib.contextmanager
def hosts(count: int, user: str = "") -> Iterator[list[Sshd]]:
    """Run sshd on so many hosts: in namespaces of their own, or on ports if we are not root."""
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(count):
            if os.geteuid():
                found.append(stack.enter_context(running_sshd(user)))
                continue
            place = stack.enter_context(namespace(number))
            found.append(
                stack.enter_context(running_sshd(user, address=place.address, prefix=place.prefix))
            )
        yield found
