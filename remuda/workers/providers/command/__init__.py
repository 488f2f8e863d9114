"""The `command` provider: VMs, or anything else, made and removed by hooks of the pool's own."""

from remuda.workers.providers.command.provider import CommandProvider

__all__ = ["CommandProvider"]
