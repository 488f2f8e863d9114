"""What is true: tables, states, guarded transitions. Talks to PostgreSQL and nothing else.

The tables are loaded when first asked for: to declare them takes as long as all else a client does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remuda.models.states import (
    AttemptState,
    ImageState,
    JobState,
    PoolState,
    Reason,
    VmState,
)

if TYPE_CHECKING:
    from remuda.models.tables import (
        Attempt,
        AttemptOutput,
        Base,
        Budget,
        CommandCounter,
        CommandVm,
        Event,
        Heartbeat,
        Image,
        Job,
        JobArray,
        JobSpecRow,
        Lease,
        LeaseRequest,
        OfferRefusal,
        OutputChunk,
        Owner,
        Pool,
        PoolProfile,
        PoolResource,
        Quota,
        Secret,
        SizingDecision,
        Sweep,
        Transition,
        UnownedMachine,
        Usage,
        Vm,
        VmOutput,
    )

__all__ = [
    "Attempt",
    "AttemptOutput",
    "AttemptState",
    "Base",
    "Budget",
    "CommandCounter",
    "CommandVm",
    "Event",
    "Heartbeat",
    "Image",
    "ImageState",
    "Job",
    "JobArray",
    "JobSpecRow",
    "JobState",
    "Lease",
    "LeaseRequest",
    "OfferRefusal",
    "OutputChunk",
    "Owner",
    "Pool",
    "PoolProfile",
    "PoolResource",
    "PoolState",
    "Quota",
    "Reason",
    "Secret",
    "SizingDecision",
    "Sweep",
    "Transition",
    "UnownedMachine",
    "Usage",
    "Vm",
    "VmOutput",
    "VmState",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from remuda.models import tables

    value = getattr(tables, name)
    globals()[name] = value
    return value
