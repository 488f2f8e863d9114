"""What a pool's VMs themselves say: their preparation's output, and their runners' logs."""

from __future__ import annotations

from collections.abc import Iterable

from remuda.client.cuts import marker
from remuda.client.pool_attributes import PoolAttributes
from remuda.errors import InstanceNotFound
from remuda.models import pool_facts, vm_outputs


class PoolOutputs(PoolAttributes):
    """The part of `remuda.client.Pool` that reads what its VMs say.

    Of each stream of each VM the last 128 KiB are kept; where more was written, a line in brackets
    tells how many bytes are gone. An `instance` is a VM of the pool, by its id or name, also one
    that is gone; None: all of them, the oldest first. Raises InstanceNotFound.
    """

    __slots__ = ()

    def stdout(self, instance: int | str | None = None) -> bytes:
        """Return what the preparation wrote to stdout."""
        return self._said("stdout", instance)

    def stderr(self, instance: int | str | None = None) -> bytes:
        """Return what the preparation wrote to stderr, and the runner to its log."""
        return self._said("stderr", instance)

    def fresh_stdout(self, instance: int | str | None = None) -> bytes:
        """Return what came to stdout since this was last asked, by anybody: each byte once."""
        return self._fresh("stdout", instance)

    def fresh_stderr(self, instance: int | str | None = None) -> bytes:
        """Return what came to stderr since this was last asked; see `fresh_stdout`."""
        return self._fresh("stderr", instance)

    def _said(self, stream: str, instance: int | str | None) -> bytes:
        vm_id = self._instance(instance)
        return _joined(
            self._context.read(lambda c: vm_outputs.kept(c, self.id, stream, vm_id=vm_id))
        )

    def _fresh(self, stream: str, instance: int | str | None) -> bytes:
        vm_id = self._instance(instance)
        return _joined(
            self._context.commit(lambda c: vm_outputs.fresh(c, self.id, stream, vm_id=vm_id))
        )

    def _instance(self, instance: int | str | None) -> int | None:
        if instance is None:
            return None
        found = self._context.read(lambda c: pool_facts.vm_id_of(c, self.id, instance))
        if found is None:
            raise InstanceNotFound(f"pool {self.name} has no VM {instance!r:.100}")
        return found


def _joined(pieces: Iterable[vm_outputs.Kept]) -> bytes:
    return b"".join(marker(p.missing) + p.data if p.missing else p.data for p in pieces)
