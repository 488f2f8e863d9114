"""The tables: for migrations, and for whoever builds statements of them; the models speak SQL."""

from remuda.models.tables.attempts import (
    Attempt,
    AttemptOutput,
    Event,
    OutputChunk,
    Sweep,
    Transition,
)
from remuda.models.tables.base import Base
from remuda.models.tables.budgets import Budget
from remuda.models.tables.command_vms import CommandCounter, CommandVm
from remuda.models.tables.jobs import Call, Dependency, Job, JobArray, JobSpecRow
from remuda.models.tables.leases import Lease, LeaseRequest
from remuda.models.tables.pool_resources import PoolResource
from remuda.models.tables.pools import Image, OfferRefusal, Owner, Pool, Quota, Usage
from remuda.models.tables.profiles import PoolProfile
from remuda.models.tables.secrets import Secret
from remuda.models.tables.sizing_decisions import SizingDecision
from remuda.models.tables.vm_outputs import VmOutput
from remuda.models.tables.vms import Heartbeat, UnownedMachine, Vm

__all__ = [
    "Attempt",
    "AttemptOutput",
    "Base",
    "Budget",
    "Call",
    "CommandCounter",
    "CommandVm",
    "Dependency",
    "Event",
    "Heartbeat",
    "Image",
    "Job",
    "JobArray",
    "JobSpecRow",
    "Lease",
    "LeaseRequest",
    "OfferRefusal",
    "OutputChunk",
    "Owner",
    "Pool",
    "PoolProfile",
    "PoolResource",
    "Quota",
    "Secret",
    "SizingDecision",
    "Sweep",
    "Transition",
    "UnownedMachine",
    "Usage",
    "Vm",
    "VmOutput",
]
