"""One of two workers that launch the same intent: `python -m tests.openstack.rivals SETTINGS FOLDER`.

Each has looked for servers of the token before any makes one, which is the worst that can happen.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from remuda.config import Settings
from remuda.workers.providers import get_provider
from tests.contract.openstack_place import spec

module: Any = importlib.import_module("remuda.workers.providers.openstack.provider")
RIVALS = 2
PATIENCE_S = 30.0


def main(settings: str, folder: str) -> None:
    """Spawn, and print the id."""
    look = module.servers_named
    met = Path(folder) / f"met-{os.getpid()}"

    def both_looked(client: Any, token: str) -> list[Any]:
        found: list[Any] = look(client, token)
        if not met.exists():
            met.touch()
            deadline = time.monotonic() + PATIENCE_S
            while len(list(Path(folder).glob("met-*"))) < RIVALS:
                assert time.monotonic() < deadline, "the other never came"
                time.sleep(0.01)  # between two looks with a deadline
        return found

    module.servers_named = both_looked
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(Path(folder) / "clouds.yaml")
    provider = get_provider("openstack", Settings(), json.loads(settings))
    print(provider.spawn(spec(), "token-1"), end="")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
