"""What energy and CO2 are estimated from: the built-in table, and a user's file over it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from remuda.carbon import CarbonTable, Datacenter
from remuda.checks import shown
from remuda.errors import BadInput

__all__ = ["read_table", "table_of"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def read_table(path: Path | None) -> CarbonTable:
    """Return the built-in table with what a TOML or JSON file says over it; raises BadInput.

    Keys: power (busy_watts_per_slot, idle_watts_per_slot, watts_per_gib), heat_intensity, grids
    {name: intensity}, datacenters {name: {grid, pue, erf, wue, intensity}}.
    """
    if path is None:
        return CarbonTable()
    try:
        text = path.read_text("utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
    return table_of(found)


def table_of(value: Any) -> CarbonTable:
    """Return the built-in table with what a mapping says over it; raises BadInput naming the key."""
    given = _mapping("the carbon table", value, ("power", "heat_intensity", "grids", "datacenters"))
    usual = CarbonTable()
    watts = ("busy_watts_per_slot", "idle_watts_per_slot", "watts_per_gib")
    power = _mapping("power", given.get("power", {}), watts)
    numbers = {name: _number(f"power.{name}", power[name], most=100_000) for name in power}
    if "heat_intensity" in given:
        numbers["heat_intensity"] = _number("heat_intensity", given["heat_intensity"], most=10_000)
    grids = dict(usual.grids)
    for name, intensity in _mapping("grids", given.get("grids", {})).items():
        grids[_word("grids", name).upper()] = _number(f"grids.{name}", intensity, most=10_000)
    centres = dict(usual.datacenters)
    for name, row in _mapping("datacenters", given.get("datacenters", {})).items():
        centres[name] = _datacenter(_word("datacenters", name), row, grids)
    return replace(usual, grids=grids, datacenters=centres, **numbers)


def _datacenter(name: str, value: Any, grids: Mapping[str, float]) -> Datacenter:
    what = f"datacenters.{name}"
    row = _mapping(what, value, ("grid", "pue", "erf", "wue", "intensity"))
    grid = row.get("grid", "WORLD")
    if not isinstance(grid, str) or grid.upper() not in grids:
        raise BadInput(f"{what}.grid: there is no grid {shown(grid)}")
    bounds = {
        "pue": (1.0, 10.0),
        "erf": (0.0, 1.0),
        "wue": (0.0, 1000.0),
        "intensity": (0.0, 10_000.0),
    }
    numbers = {
        key: _number(f"{what}.{key}", row[key], least=bounds[key][0], most=bounds[key][1])
        for key in row
        if key in bounds
    }
    return Datacenter(name, grid.upper(), **numbers)


def _mapping(what: str, value: Any, keys: tuple[str, ...] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadInput(f"{what} must be a mapping, not {shown(value)}")
    unknown = [] if keys is None else sorted(str(key) for key in value if key not in keys)
    if unknown:
        raise BadInput(
            f"{what} has no key {', '.join(unknown)[:200]}", hint=f"keys: {', '.join(keys or ())}"
        )
    return value


def _word(what: str, name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput(f"{what}: {shown(name)} is no short name")
    return name


def _number(what: str, value: Any, *, least: float = 0.0, most: float) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not least <= value <= most:
        raise BadInput(f"{what} must be a number from {least:g} to {most:g}, not {shown(value)}")
    return float(value)
