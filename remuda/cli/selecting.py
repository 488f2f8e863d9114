"""Options of commands that list VMs by any of their fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from remuda.cli.types import DURATION_OR_ZERO, VM_STATES

F = TypeVar("F", bound=Callable[..., Any])


def vm_filters(function: F) -> F:
    """Add `--pool`, `--state`, `--older`, `--newer` and `--where`."""
    for option in reversed(
        [
            click.option(
                "--pool", "pools", metavar="POOL", multiple=True, help="Of this pool. Repeatable."
            ),
            click.option(
                "--state",
                "states",
                type=click.Choice(VM_STATES, case_sensitive=False),
                multiple=True,
                help="Only those in this state. Repeatable.",
            ),
            click.option("--older", type=DURATION_OR_ZERO, help="Made at least so long ago."),
            click.option("--newer", type=DURATION_OR_ZERO, help="Made less than so long ago."),
            click.option(
                "--where",
                "wheres",
                metavar="FIELD=VALUE",
                multiple=True,
                help="Any field: VALUE, A,B (one of), LOW..HIGH, none, text with *. Repeatable.",
            ),
        ]
    ):
        function = option(function)
    return function


def filters_of(
    pools: Sequence[str],
    states: Sequence[str],
    older: float | None,
    newer: float | None,
    wheres: Sequence[str],
) -> dict[str, Any]:
    """Return the filters given on the command line, as the client takes them; raises BadInput."""
    from remuda.errors import BadInput
    from remuda.models.query import VMS
    from remuda.models.selecting import read

    found: dict[str, Any] = {}
    for where in wheres:
        name, equals, text = where.partition("=")
        if not equals:
            raise BadInput(f"{where[:60]!r} is not FIELD=VALUE", hint="such as --where load=0.5..")
        if name in found:
            raise BadInput(f"the field {name[:60]!r} is filtered twice")
        found[name] = read(VMS, name, text)
    if pools:
        found["pool"] = list(pools)
    if states:
        found["state"] = list(states)
    ages = {"older_s": older, "newer_s": newer}
    return {**found, **{name: age for name, age in ages.items() if age is not None}}
