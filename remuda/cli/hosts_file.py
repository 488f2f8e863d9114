"""The file that lists the hosts of a static pool."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remuda.errors import BadInput
from remuda.hosts import hosts_of

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any, Any]
else:  # not generic before click 8.4
    _ParamType = click.ParamType


class HostsFile(_ParamType):
    """A JSON list of hosts, or JSON or TOML with the list `hosts`; read and checked."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[dict[str, Any]]:
        """Return the hosts."""
        if isinstance(value, list):
            return value
        try:
            text = Path(value).read_text("utf-8")
            found = tomllib.loads(text) if value.endswith(".toml") else json.loads(text)
            settings = {"hosts": found} if isinstance(found, list) else found
            if not isinstance(settings, dict):
                raise BadInput("hosts must be a list")
            hosts_of(settings)
        except OSError as error:
            self.fail(f"{value}: {error.strerror}", param, ctx)
        except (BadInput, ValueError) as error:
            self.fail(f"{value}: {error}", param, ctx)
        return list(settings["hosts"])
