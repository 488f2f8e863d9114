"""Where the command provider is tested: a yard of folders, and hooks for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from remuda.config import Settings, load_settings
from remuda.workers.providers import VmSpec, get_provider

NEW = (
    'cd "$YARD" && mkdir $REMUDA_PROVIDER_ID && env > $REMUDA_PROVIDER_ID/env'
    " && echo 10.0.0.$REMUDA_VM_NUMBER"
)
DELETE = 'env > "$LOG/deleted" && rm -rf "$YARD/$REMUDA_PROVIDER_ID"'
LIST = 'ls "$YARD"'


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return load_settings(database_url=database_url, data_dir=tmp_path / "data")


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    (tmp_path / "yard").mkdir()
    return tmp_path / "yard"


@pytest.fixture
def hooks(yard: Path) -> dict[str, Any]:
    environment = {"YARD": str(yard), "LOG": str(yard.parent)}
    return {"cmd_new": NEW, "cmd_delete": DELETE, "environment": environment}


def spec(name: str = "vm-1", pool: str = "sim") -> VmSpec:
    return VmSpec(name, pool, 2)


def seen(yard: Path, vm_id: str) -> dict[str, str]:
    lines = (yard / vm_id / "env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


if __name__ == "__main__":  # one of several workers
    provider = get_provider("command", load_settings(), json.loads(sys.argv[1]))
    print(provider.spawn(spec(), "token-1"), end="")
