"""The files every VM of a pool has: found here, stored for the pool, and added to."""

from __future__ import annotations

import os
from typing import Any

from remuda.client.inputs import InputFinder
from remuda.client.pool_attributes import PoolAttributes
from remuda.models import pool_resources
from remuda.spec_files import Inputs, inputs_of
from remuda.storage import Storage


class PoolResources(PoolAttributes):
    """The part of `remuda.client.Pool` that has to do with its resources."""

    __slots__ = ()

    @property
    def resources(self) -> list[dict[str, Any]]:
        """The files each of its VMs has before it takes jobs: {name, url, sha256, size, ...}.

        They are set as the inputs of a job are given (files, patterns, directories, URLs), stored
        at once, and committed with the rest; until it is submitted. Jobs find them in the folder
        $REMUDA_RESOURCES. Setting raises DataStagingError naming what is missing, SetTooLate.
        """
        if "resources" in self._edits:
            return [dict(row) for row in self._edits["resources"]]
        return self._context.read(lambda c: pool_resources.listing(c, self.id))

    @resources.setter
    def resources(self, inputs: Inputs) -> None:
        self._not_submitted("resources")
        self._edits["resources"] = stored(self._context.storage, str(self._get("uuid")), inputs)

    def update_resources(self, inputs: Inputs = ()) -> int:
        """Add resources, or newer ones of the same names; return how many are new.

        Running VMs get them without a restart, soon: jobs that must have them say
        `wait_for_resources`. Every VM looks again at what was given by URL. Nothing is taken away.
        Raises DataStagingError, Refused when it has ended.
        """
        files = stored(self._context.storage, str(self._get("uuid")), inputs)
        return self._context.commit(lambda c: pool_resources.add(c, self.id, files))


def stored(storage: Storage, pool_uuid: str, inputs: Inputs) -> list[dict[str, Any]]:
    """Store files for a pool and return their rows; raises BadInput, DataStagingError."""
    finder = InputFinder(storage, os.getcwd(), folder=f"pools/{pool_uuid}")
    return finder.rows(inputs_of(inputs))
