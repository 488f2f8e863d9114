"""The file that lists the hosts of a static pool."""

from __future__ import annotations

from typing import Any

from remuda.cli.table_file import TableFile
from remuda.errors import BadInput
from remuda.hosts import hosts_of


class HostsFile(TableFile):
    """A list of hosts, or a table with the list `hosts`."""

    name = "file"
    key = "hosts"

    def rows(self, found: Any) -> list[dict[str, Any]]:
        """Return the hosts, each checked."""
        if not isinstance(found, list):
            raise BadInput("hosts must be a list")
        hosts_of({"hosts": found})
        return found
