"""What is known of a pool and nobody sets: counts, times, what is wrong with it."""

from __future__ import annotations

from datetime import datetime

from remuda.client.pool_attributes import PoolAttributes
from remuda.models import pool_facts


class PoolFacts(PoolAttributes):
    """The part of `remuda.client.Pool` that only tells."""

    __slots__ = ()

    @property
    def message(self) -> str | None:
        """What went wrong last, if launches fail."""
        return self._get("message")  # type: ignore[no-any-return]

    @property
    def errors(self) -> list[str]:
        """What is wrong with it now: launches that fail, a loss that froze it, VMs in trouble."""
        return self._context.read(lambda c: pool_facts.errors(c, self.id))

    @property
    def created_at(self) -> datetime:
        """When it was made."""
        return self._row["created_at"]  # type: ignore[no-any-return]

    @property
    def updated_at(self) -> datetime:
        """When it was last changed."""
        return self._get("updated_at")  # type: ignore[no-any-return]

    @property
    def state_changed_at(self) -> datetime:
        """When it came into its state."""
        return self._get("state_changed_at")  # type: ignore[no-any-return]

    @property
    def previous_state_changed_at(self) -> datetime | None:
        """When it came into the state before; None: this is its first."""
        return self._get("previous_state_changed_at")  # type: ignore[no-any-return]

    @property
    def ended_at(self) -> datetime | None:
        """When it was closed."""
        return self._get("ended_at")  # type: ignore[no-any-return]

    @property
    def execution_time_s(self) -> float:
        """CPU seconds, of all processes, that jobs have used on its VMs so far."""
        return self._context.read(lambda c: pool_facts.cpu_s(c, self.id))

    @property
    def running_core_count(self) -> int:
        """How many slots its running VMs have."""
        return int(self._get("slots"))

    @property
    def busy_core_count(self) -> int:
        """How many of them its jobs use now."""
        return int(self._get("busy_slots"))

    @property
    def running_instance_count(self) -> int:
        """How many of its VMs are RUNNING."""
        return int(self._get("running_vms"))

    @property
    def queued_or_running_task_instances_count(self) -> int:
        """How many of its jobs have not ended."""
        return int(self._get("waiting_jobs")) + int(self._get("live_jobs"))
