"""The providers and backends there are: Remuda's own, and those that packages register.

A package registers something to call as an entry point of the group `remuda.providers` (called
with the Settings, such as a Provider subclass) or `remuda.backends` (a Backend subclass). Finding
out who is there imports none of them.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from remuda.errors import BadInput

__all__ = ["BACKENDS", "PROVIDERS", "find_kind", "known_kinds"]

PROVIDERS, BACKENDS = "remuda.providers", "remuda.backends"
_OURS = {
    PROVIDERS: {
        "command": "remuda.workers.providers.command:CommandProvider",
        "ec2": "remuda.workers.providers.ec2:Ec2Provider",
        "libvirt": "remuda.workers.providers.libvirt:LibvirtProvider",
        "local": "remuda.workers.providers.local:LocalProvider",
        "noop": "remuda.workers.providers.noop:NoopProvider",
        "openstack": "remuda.workers.providers.openstack:OpenstackProvider",
        "static": "remuda.workers.providers.static:StaticProvider",
    },
    BACKENDS: {
        "local": "remuda.workers.backends.local:LocalBackend",
        "noop": "remuda.workers.backends.noop:NoopBackend",
        "slurm": "remuda.workers.backends.slurm:SlurmBackend",
        "ssh": "remuda.workers.backends.ssh:SshBackend",
    },
}


def known_kinds(group: str) -> list[str]:
    """Return the names of a group that can be had on this machine."""
    return sorted({*_OURS[group], *(point.name for point in entry_points(group=group))})


def find_kind(group: str, kind: str) -> EntryPoint:
    """Return where a kind is; raises BadInput, naming those there are, for one that is not here."""
    if kind in _OURS[group]:
        return EntryPoint(kind, _OURS[group][kind], group)
    for point in entry_points(group=group, name=kind):
        return point
    what = group.removeprefix("remuda.").removesuffix("s")
    known = ", ".join(known_kinds(group))
    raise BadInput(f"there is no {what} {kind!r}", hint=f"known: {known}")
