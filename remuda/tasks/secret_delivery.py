"""Secrets on their way to jobs: decrypted where they are handed over, and kept nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remuda.keyring import KeyRing
from remuda.models import secrets
from remuda.tasks.runtime import Runtime


def secrets_for(runtime: Runtime, rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, str]]:
    """Return, by pool, the variables of those rows of `starting.to_start` that get any.

    Raises ConfigError, SecretUnreadable.
    """
    pools = {row["pool_id"] for row in rows if row["gets_secrets"]}
    if not pools:
        return {}
    ring = KeyRing(runtime.settings)
    stored = runtime.transact(lambda c: {pool: secrets.of_pool(c, pool) for pool in pools})
    return {
        pool: {
            row["name"]: ring.decrypt(row["owner"], row["name"], bytes(row["stored"]))
            for row in found
        }
        for pool, found in stored.items()
    }
