"""The files all jobs of a VM may read: its pool's resources, in HOME/resources."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from remuda.workers.onvm.connection import Connection
from remuda.workers.onvm.sandbox import copy_in, inside
from remuda.workers.onvm.saying import Saying


class Resources(Saying):
    """The request `resources`."""

    def __init__(self, home: str, **options: Any) -> None:
        """Tell jobs where they are."""
        super().__init__(home, **options)
        self.environ["REMUDA_RESOURCES"] = home + "/resources"

    def do_resources(self, _connection: Connection, ask: dict[str, Any]) -> dict[str, Any]:
        """{files: [name, source, mode]}: copy them in; each takes its place whole or not at all.

        Whoever has an older one open goes on reading that. Answers with {failed: {name: why}}.
        """
        folder, failed = self.home + "/resources", {}
        os.makedirs(folder, 0o700, exist_ok=True)
        for name, source, mode in ask["files"]:
            try:
                target = f"{folder}/{inside(str(name))}"
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.home + "/resource.new")
                size = copy_in(self.home, "resource.new", str(source), int(mode))
                os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
                os.replace(self.home + "/resource.new", target)
            except (OSError, ValueError) as error:
                failed[name] = getattr(error, "strerror", None) or str(error)
                continue
            self.moved_files += 1
            self.moved_bytes += size
        return {"failed": failed}
