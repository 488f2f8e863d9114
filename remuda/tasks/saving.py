"""Copy what attempts left on a VM to where it is kept: the storage, or the URL a user named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from remuda.errors import DataStagingError
from remuda.files import sha256_of, telling
from remuda.partials import partial
from remuda.spec_files import destination, filler, is_url
from remuda.storage import Storage
from remuda.stores import push
from remuda.tasks.links import vm_address
from remuda.tasks.runtime import Runtime
from remuda.workers.channel import Channel

LARGE_BYTES = 1 << 20  # from here on, what came of a file outlives this process


class Saver:
    """Saves the outputs of attempts of one VM; every file is streamed, and whole or not there."""

    def __init__(self, runtime: Runtime, vm: Mapping[str, Any], channel: Channel) -> None:
        """`vm`: its row, `channel`: open to its runner. Raises ConfigError for a wrong storage."""
        self._storage = Storage(runtime.settings.storage)
        # Of any worker with this storage; else of the next on this machine.
        own = runtime.settings.state_dir / "partial"
        self._partials = self._storage.partials or own
        self._backend = runtime.links.backend(vm["backend"])
        self._vm = vm_address(vm)
        self._channel = channel

    def save(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Save what is pending of an attempt (a row of `collect.to_collect`); return its rows.

        Saving again replaces what there is. Raises DataStagingError, OutputNotAvailable, ConfigError
        for a store that is not installed.
        """
        pending = row["pending"] or {}
        files: dict[str, int] = pending.get("files", {})
        outputs = _filled(row)
        programs = set(pending.get("executable", ()))
        saved = []
        for name, size in files.items():
            to = destination(name, outputs)
            if to is None:
                raise DataStagingError(f"the VM tells of a file nobody asked for: {name!r:.200}")
            # A file of the sandbox may be called stdout, too.
            mode = 0o755 if name in programs else None
            found = self._save(row, "file", name, f"./{name}", to=to, size=size, mode=mode)
            saved.append({**found, "executable": mode is not None})
        cuts = pending.get("cut", {})
        for name in pending.get("streams", []):
            cut = dict(
                zip(("cut_from", "cut_to", "written_bytes"), cuts.get(name, ()), strict=False)
            )
            saved.append({**self._save(row, "stream", name, name), **cut})
        return saved

    def _save(
        self,
        row: Mapping[str, Any],
        kind: str,
        name: str,
        source: str,
        *,
        to: str = "",
        size: int | None = None,
        mode: int | None = None,
    ) -> dict[str, Any]:
        key = f"jobs/{row['job_id']}/{row['attempt_id']}/{kind}/{name}"

        def fetch(target: BinaryIO) -> tuple[int, str]:
            done = self._backend.fetch(self._channel, self._vm, row["attempt_id"], source, target)
            if size is not None and done != size:
                raise DataStagingError(f"output {name!r:.200} has {done} bytes, it had {size}")
            with telling("the worker's storage"):
                target.flush()
            return done, sha256_of(target.fileno())

        if is_url(to):
            url = to
            with partial(self._partials, key) as target:
                size, sha256 = fetch(target)
                push(target.name, url)
        else:
            url = self._storage.url(key)
            large = size is None or size >= LARGE_BYTES
            partials = self._partials if large else None
            with self._storage.writing(key, mode=mode, partials=partials) as target:
                size, sha256 = fetch(target)
        return {
            "attempt_id": row["attempt_id"],
            "kind": kind,
            "name": name,
            "size": size,
            "data": None,
            "url": url,
            "sha256": sha256,
        }


def _filled(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the outputs of the attempt's spec as they are for its job."""
    fill = filler(row["array_index"], row["params"])
    return [
        {key: fill(value) if isinstance(value, str) else value for key, value in output.items()}
        for output in row["outputs"]
    ]
