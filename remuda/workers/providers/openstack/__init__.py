"""The `openstack` provider: VMs of any OpenStack cloud."""

from __future__ import annotations

from remuda.workers.providers.openstack.provider import OpenstackProvider

__all__ = ["OpenstackProvider"]
