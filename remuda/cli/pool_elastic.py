"""The options that say how a pool grows and shrinks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from remuda.policies import ElasticSettings

# The local provider makes a VM in a moment, a cloud takes a minute: how often it pays to look.
_LOCAL_PERIOD_S = 1.0
_PERIOD_S = 90.0

_ELASTIC = {
    "min_slots": ("minimum_total_slots", "elastic_minimum_slots"),
    "max_slots": ("maximum_total_slots", "elastic_maximum_slots"),
    "min_idle_slots": ("minimum_idle_slots", "elastic_minimum_idle_slots"),
    "idle_time": ("minimum_idle_time_seconds", "elastic_minimum_idle_time_s"),
    "resize_factor": ("resize_factor", "elastic_resize_factor"),
    "resize_period": ("resize_period", "elastic_resize_period_s"),
}


def elastic_of(options: Mapping[str, Any], *, provider: str) -> dict[str, Any]:
    """Return the arguments of `setup_elastic` for a new pool; empty if it is to be of fixed size.

    Raises BadInput.
    """
    given = _given(options)
    if not given:
        return {}
    if "max_slots" not in given:
        raise click.UsageError("an elastic pool needs --max-slots")
    if given.get("min_slots", 0) > given["max_slots"]:
        raise click.UsageError("--min-slots is above --max-slots")
    given.setdefault("resize_period", _LOCAL_PERIOD_S if provider == "local" else _PERIOD_S)
    elastic = {_ELASTIC[name][0]: value for name, value in given.items()}
    ElasticSettings(**elastic)  # before there is a pool, that a refused one leaves nothing behind
    return elastic


def elastic_changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the elastic fields to change; --vms makes a pool one of fixed size, the others not."""
    given = _given(options)
    if given:
        return {"is_elastic": True, **{_ELASTIC[name][1]: v for name, v in given.items()}}
    return {"is_elastic": False} if options["vms"] is not None else {}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: options[name] for name in _ELASTIC if options[name] is not None}
    if given and options["vms"] is not None:
        first = f"--{next(iter(given)).replace('_', '-')}"
        raise click.UsageError(f"--vms is for a pool of fixed size, {first} for an elastic one")
    return given
