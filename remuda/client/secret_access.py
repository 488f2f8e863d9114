"""Which secrets the jobs of a pool are given: by their names, or by how these begin."""

from __future__ import annotations

import re
from typing import Any

from remuda.checks import shown
from remuda.errors import BadInput

__all__ = ["SECRET_NAME", "access_of"]

SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}", re.ASCII)


def access_of(what: str, value: Any) -> dict[str, list[str]]:
    """Return which secrets a pool's jobs are given, {names, prefixes}; raises BadInput."""
    given = {} if value is None else value
    if not isinstance(given, dict) or set(given) - {"names", "prefixes"}:
        raise BadInput(
            f"{what} must be a mapping of names and prefixes, not {shown(value)}",
            hint='{"names": ["DB_PASSWORD"], "prefixes": ["AWS_"]}',
        )
    found = {key: given.get(key) or [] for key in ("names", "prefixes")}
    for key, items in found.items():
        if not isinstance(items, (list, tuple)) or len(items) > 1000:
            raise BadInput(f"{what}: {key} must be a list of at most 1000, not {shown(items)}")
        for item in items:
            if not isinstance(item, str) or not SECRET_NAME.fullmatch(item):
                raise BadInput(
                    f"{what}: {shown(item)} cannot be the name of a secret, or begin one"
                )
    return {key: sorted(set(items)) for key, items in found.items() if items}
