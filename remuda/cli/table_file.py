"""An option whose value is a table: JSON itself, or a file of JSON or TOML; `-`: stdin."""

from __future__ import annotations

import json
import sys
import tomllib
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remuda.errors import BadInput

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any, Any]
else:  # not generic before click 8.4
    _ParamType = click.ParamType

_SHOWN = 200


class TableFile(_ParamType):
    """A list of rows, a table with such a list under `key`, or one row; read and checked."""

    name = "file|json"
    key = ""

    @abstractmethod
    def rows(self, found: Any) -> list[dict[str, Any]]:
        """Return the rows as they are kept; raises BadInput or ValueError."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[dict[str, Any]]:
        """Return the rows."""
        if isinstance(value, list):
            return value
        try:
            if value.lstrip().startswith(("{", "[")):
                found = json.loads(value)
            else:
                text = sys.stdin.read() if value == "-" else Path(value).read_text("utf-8")
                found = tomllib.loads(text) if value.endswith(".toml") else json.loads(text)
            if isinstance(found, Mapping):
                found = found.get(self.key, [found])
            return self.rows(found)
        except OSError as error:
            self.fail(f"{value[:_SHOWN]}: {error.strerror}", param, ctx)
        except (BadInput, ValueError) as error:
            self.fail(f"{value[:_SHOWN]}: {error}", param, ctx)
