"""The `local` provider: a VM is a folder of this machine and a runner, with its own session.

The folder is `data_dir/vms/<name>-<start of the token>`; its `vm.json` makes it a VM.
"""

from __future__ import annotations

import builtins
import json
import os
import re
import stat
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from remuda.config import Settings
from remuda.errors import (
    BadInput,
    PermanentProviderError,
    ProviderError,
    TransientProviderError,
    VmUnreachable,
)
from remuda.hosts import slurm_of
from remuda.workers.backends.local import start_runner
from remuda.workers.backends.slurm import serve_arguments
from remuda.workers.onvm.commands import STOPPED, stop
from remuda.workers.providers.base import Provider, VmDescription, VmSpec, VmState

TRASH = ".trash-"


class LocalProvider(Provider):
    """VMs on this machine. They see its files and are not limited in what they use."""

    kind = "local"

    def __init__(self, settings: Settings) -> None:
        """Keep the VMs under `settings.data_dir`."""
        self.root = Path(os.path.realpath(settings.data_dir)) / "vms"

    def spawn(self, spec: VmSpec, token: str) -> str:
        """Make the folder, start the runner; returns when it listens.

        If it fails, the folder stays: somebody else may just have had more luck with it.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            home = self._make(spec, token)
        except OSError as error:
            hint = "data_dir must be a folder you may write to, with room on its disk"
            message = f"cannot make a VM in {self.root}: {error.strerror}"
            raise PermanentProviderError(message, hint=hint) from error
        arguments = serve_arguments(
            name=spec.name,
            slots=spec.slots,
            memory_bytes=spec.memory_bytes,
            heartbeat_s=spec.heartbeat_s,
            settings=spec.settings,
        )
        try:
            start_runner(home, arguments)
        except VmUnreachable as error:
            raise TransientProviderError(f"cannot start VM {spec.name}: {error.message}") from error
        return home.name

    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        """Read the folders; a VM whose runner died is running, `Backend.revive` mends it."""
        found = {vm_id: self._describe(vm_id) for vm_id in ids}
        return {vm_id: description for vm_id, description in found.items() if description}

    def list(self, tag: str) -> builtins.list[VmDescription]:
        """Read all folders."""
        try:
            names = sorted(os.listdir(self.root))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise TransientProviderError(f"cannot read {self.root}: {error.strerror}") from error
        found = [self._describe(name) for name in names if not name.startswith(".")]
        return [vm for vm in found if vm and tag in ("", self._read(vm.provider_id).get("pool"))]

    def terminate(self, provider_id: str) -> None:
        """Kill what runs there, delete the folder; both are certain when this returns."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", provider_id):
            return  # never one of ours
        home = self.root / provider_id
        try:
            stop(str(home))
        except (RuntimeError, OSError) as error:
            raise TransientProviderError(f"cannot stop VM {provider_id}: {error}") from error
        try:
            os.rename(home, self.root / f"{TRASH}{uuid.uuid4().hex}")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise TransientProviderError(f"cannot delete {home}: {error.strerror}") from error
        self._empty_trash()

    def validate(self, settings: Mapping[str, Any]) -> None:
        """Accept "slurm", for a cluster's login node (see `remuda.hosts.slurm_of`)."""
        slurm_of(settings)
        if set(settings) - {"slurm"}:
            unknown = ", ".join(sorted(map(str, set(settings) - {"slurm"})))
            raise BadInput(f"the local provider has no setting {unknown}")

    # ---- folders

    def _make(self, spec: VmSpec, token: str) -> Path:
        """Return the VM's folder with its vm.json, made now or by an earlier try."""
        stem = re.sub(r"[^A-Za-z0-9_-]", "-", spec.name)[:64] or "vm"
        end = re.sub(r"[^A-Za-z0-9]", "", token)
        for name in (f"{stem}-{end[:8]}", f"{stem}-{end[:128]}"):
            home = self.root / name.lstrip("-")
            home.mkdir(mode=0o700, exist_ok=True)
            known = self._read(home.name)
            if not known:
                about = {"token": token, "name": spec.name, "pool": spec.pool, "slots": spec.slots}
                new = home / f"vm.json.{uuid.uuid4().hex}"
                new.write_text(json.dumps(about), "utf-8")
                new.rename(home / "vm.json")
            if not known or known.get("token") == token:
                return home
        raise ProviderError(f"there is another VM {spec.name} whose token resembles {token!r}")

    def _read(self, provider_id: str) -> dict[str, Any]:
        try:
            about = json.loads((self.root / provider_id / "vm.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}

    def _describe(self, provider_id: str) -> VmDescription | None:
        about, home = self._read(provider_id), self.root / provider_id
        if not about or "/" in provider_id:
            return None
        state: VmState = "running" if (home / "runner.json").exists() else "pending"
        if (home / STOPPED).exists():
            state = "stopped"
        return VmDescription(
            provider_id,
            state,
            address={"home": str(home)},
            private_ip="127.0.0.1",
            token=str(about.get("token", "")),
            pool=str(about.get("pool", "")),
        )

    def _empty_trash(self) -> None:
        for name in os.listdir(self.root) if self.root.is_dir() else ():
            if name.startswith(TRASH):
                try:
                    remove_tree(self.root / name)
                except FileNotFoundError:
                    continue  # another process empties it too
                except OSError as error:
                    raise TransientProviderError(f"cannot delete {name}: {error}") from error


def remove_tree(root: Path) -> None:
    """Delete a folder, however deep it is and whatever the modes in it; links are not followed.

    What is deep is first moved up beside `root`, so no path gets longer than the system allows.
    """
    todo = [root]
    while todo:
        folder = todo.pop()
        if stat.S_IMODE(os.lstat(folder).st_mode) & 0o700 != 0o700:
            os.chmod(folder, 0o700)
        with os.scandir(folder) as entries:
            found = list(entries)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)
                todo.append(root.with_name(f"{TRASH}{uuid.uuid4().hex}"))
                os.rename(entry.path, todo[-1])
            else:
                os.unlink(entry.path)
        os.rmdir(folder)
