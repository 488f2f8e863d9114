"""The `ec2` provider: VMs of Amazon EC2, and of what speaks its API."""

from __future__ import annotations

from remuda.workers.providers.ec2.provider import Ec2Provider

__all__ = ["Ec2Provider"]
