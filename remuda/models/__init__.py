"""What is true: tables, states, guarded transitions. Talks to PostgreSQL and nothing else."""

from remuda.models.attempts import Attempt, AttemptOutput, Event, OutputChunk, Sweep, Transition
from remuda.models.base import Base
from remuda.models.budgets import Budget
from remuda.models.command_vms import CommandCounter, CommandVm
from remuda.models.jobs import Job, JobArray, JobSpecRow
from remuda.models.lease_tables import Lease, LeaseRequest
from remuda.models.pool_resources import PoolResource
from remuda.models.pools import Image, OfferRefusal, Owner, Pool, Quota, Usage
from remuda.models.profiles import PoolProfile
from remuda.models.secrets import Secret
from remuda.models.sizing_decisions import SizingDecision
from remuda.models.states import (
    AttemptState,
    ImageState,
    JobState,
    PoolState,
    Reason,
    VmState,
)
from remuda.models.vm_outputs import VmOutput
from remuda.models.vms import Heartbeat, UnownedMachine, Vm

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
