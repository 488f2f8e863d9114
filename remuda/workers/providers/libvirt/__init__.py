"""The `libvirt` provider: virtual machines on a host that libvirt manages."""

from __future__ import annotations

from remuda.workers.providers.libvirt.provider import LibvirtProvider

__all__ = ["LibvirtProvider"]
