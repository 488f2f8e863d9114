"""Remuda runs batch jobs on a herd of machines: pools of VMs that grow and shrink by demand."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remuda.client import (
        Array,
        Client,
        Explanation,
        Job,
        Lease,
        LeasedVm,
        Pool,
        Result,
        UnownedMachine,
        Usage,
        VmInfo,
    )
    from remuda.config import Settings, load_settings
    from remuda.dependencies import After
    from remuda.errors import (
        AlreadyExists,
        BadInput,
        ConfigError,
        DatabaseUnavailable,
        DataStagingError,
        EmbeddedError,
        InstanceNotFound,
        JobFailed,
        NoResources,
        NotFound,
        NoVmAvailable,
        OutputNotAvailable,
        Refused,
        RemudaError,
        StaleHolder,
        UnknownArray,
        UnknownJob,
        UnknownPool,
        WaitTimeout,
    )
    from remuda.retries import RetryPolicy, RetryRule
    from remuda.spec import JobSpec
    from remuda.spec_files import ANY_OUTPUT, Input, Output

__all__ = [
    "ANY_OUTPUT",
    "After",
    "AlreadyExists",
    "Array",
    "BadInput",
    "Client",
    "ConfigError",
    "DataStagingError",
    "DatabaseUnavailable",
    "EmbeddedError",
    "Explanation",
    "Input",
    "InstanceNotFound",
    "Job",
    "JobFailed",
    "JobSpec",
    "Lease",
    "LeasedVm",
    "NoResources",
    "NoVmAvailable",
    "NotFound",
    "Output",
    "OutputNotAvailable",
    "Pool",
    "Refused",
    "RemudaError",
    "Result",
    "RetryPolicy",
    "RetryRule",
    "Settings",
    "StaleHolder",
    "UnknownArray",
    "UnknownJob",
    "UnknownPool",
    "UnownedMachine",
    "Usage",
    "VmInfo",
    "WaitTimeout",
    "load_settings",
]

# Loaded when first asked for, so that `import remuda` costs nothing.
_HOMES = {
    "remuda.client": {
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
    },
    "remuda.dependencies": {"After"},
    "remuda.config": {"Settings", "load_settings"},
    "remuda.retries": {"RetryPolicy", "RetryRule"},
    "remuda.spec": {"JobSpec"},
    "remuda.spec_files": {"ANY_OUTPUT", "Input", "Output"},
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF.get(name, "remuda.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
