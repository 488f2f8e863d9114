"""The inputs of a spec found on this machine, each stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from remuda.finding import FoundInput, found_inputs
from remuda.spec_files import Input, is_url
from remuda.storage import INPUTS, Storage

__all__ = ["InputFinder"]


class InputFinder:
    """Turns inputs into rows of a spec."""

    def __init__(self, storage: Storage, here: str, *, folder: str = INPUTS) -> None:
        """`here`: where relative paths start. `folder`: where in the storage they are kept."""
        self._folder = folder
        self._storage = storage
        self._here = here

    def rows(self, inputs: Iterable[Input]) -> list[dict[str, Any]]:
        """Store what is to be stored; return (name, url, sha256, size, mode) of each file.

        Raises DataStagingError as `remuda.finding.found_inputs`, and for what cannot be stored.
        """
        return [self._row(found) for found in found_inputs(inputs, self._here)]

    def _row(self, found: FoundInput) -> dict[str, Any]:
        if is_url(found.path):
            return {"name": found.name, "url": found.path, "sha256": "", "size": 0, "mode": 0o644}
        stored = self._storage.put_file(found.path, name=found.shown, folder=self._folder)
        return {
            "name": found.name,
            "url": stored.url,
            "sha256": stored.sha256,
            "size": stored.size,
            "mode": stored.mode,
        }
