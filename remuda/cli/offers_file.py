"""What says which offers a pool has: JSON itself, or a file of JSON or TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remuda.errors import BadInput
from remuda.offers import offer_row, offers_of

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any, Any]
else:  # not generic before click 8.4
    _ParamType = click.ParamType


class OffersFile(_ParamType):
    """One offer, a list of them, or a table with the list `offers`; read and checked."""

    name = "file|json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[dict[str, Any]]:
        """Return the offers."""
        if isinstance(value, list):
            return value
        try:
            if value.lstrip().startswith(("{", "[")):
                found = json.loads(value)
            else:
                text = Path(value).read_text("utf-8")
                found = tomllib.loads(text) if value.endswith(".toml") else json.loads(text)
            if isinstance(found, Mapping):
                found = found.get("offers", [found])
            return [offer_row(offer) for offer in offers_of(found)]
        except OSError as error:
            self.fail(f"{value}: {error.strerror}", param, ctx)
        except (BadInput, ValueError) as error:
            self.fail(f"{value[:200]}: {error}", param, ctx)
