"""For tests of what uses Remuda, and of what extends it.

The fakes need nothing: the `noop` backend and provider, their `Faults`, and `world()`, which reaches
into the simulated VMs. The contract suites need pytest, which the extra `remuda[testing]` brings.

    BackendContract    every Backend passes it, with a VM that the fixture `place` gives
    ProviderContract   every Provider passes it, with one that the fixture `provider` gives
    ResourceContract   a Resource over a backend passes it

See docs/testing.md.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from remuda.workers.backends.noop import NoopBackend
from remuda.workers.backends.noop.faults import Faults, ProviderFaults
from remuda.workers.backends.noop.world import World, world
from remuda.workers.providers.noop import NoopProvider

if TYPE_CHECKING:
    from remuda.testing.backend_contract import BackendContract
    from remuda.testing.commands import Act, Commands, NoopCommands, ShellCommands
    from remuda.testing.place import Place, Site, wait_until
    from remuda.testing.provider_contract import ProviderContract
    from remuda.testing.resource_contract import ResourceContract

__all__ = [
    "Act",
    "BackendContract",
    "Commands",
    "Faults",
    "NoopBackend",
    "NoopCommands",
    "NoopProvider",
    "Place",
    "ProviderContract",
    "ProviderFaults",
    "ResourceContract",
    "ShellCommands",
    "Site",
    "World",
    "wait_until",
    "world",
]

_SUITES = {
    "BackendContract": "backend_contract",
    "ProviderContract": "provider_contract",
    "ResourceContract": "resource_contract",
}
_HELPERS = {
    "Act": "commands",
    "Commands": "commands",
    "NoopCommands": "commands",
    "Place": "place",
    "ShellCommands": "commands",
    "Site": "place",
    "wait_until": "place",
}


def __getattr__(name: str) -> Any:
    if name in _SUITES:
        try:
            import pytest
        except ImportError as error:
            raise ImportError(
                "the contract suites of remuda.testing need pytest: pip install 'remuda[testing]'"
            ) from error
        for module in (*_SUITES.values(), "request_contract", "results_contract"):
            if f"{__name__}.{module}" not in sys.modules:  # a failed assert shows its values then
                pytest.register_assert_rewrite(f"{__name__}.{module}")
    module_name = _SUITES.get(name) or _HELPERS.get(name)
    if module_name is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module_name}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
