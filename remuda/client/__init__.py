"""The Python API: what producers of jobs and operators of pools use.

Loaded name by name, when first asked for: SQLAlchemy and psycopg take their time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remuda.client.arrays import Array
    from remuda.client.client import Client
    from remuda.client.explaining import Explanation
    from remuda.client.jobs import Job
    from remuda.client.leases import Lease, LeasedVm
    from remuda.client.pools import Pool
    from remuda.client.results import Result, Usage
    from remuda.client.vms import UnownedMachine, VmInfo

__all__ = [
    "Array",
    "Client",
    "Explanation",
    "Job",
    "Lease",
    "LeasedVm",
    "Pool",
    "Result",
    "UnownedMachine",
    "Usage",
    "VmInfo",
]

_HOME_OF = {
    "Array": "arrays",
    "Client": "client",
    "Explanation": "explaining",
    "Job": "jobs",
    "Lease": "leases",
    "LeasedVm": "leases",
    "Pool": "pools",
    "Result": "results",
    "UnownedMachine": "vms",
    "Usage": "results",
    "VmInfo": "vms",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
