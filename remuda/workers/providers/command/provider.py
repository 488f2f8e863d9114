"""VMs made and removed by hooks, in the manner of resalloc; the book of them is in the database.

Every worker runs the hooks, on its own host, one at a time for each VM. What `cmd_new` was asked for
stays in the book, its number its own, until `cmd_delete` has succeeded: nothing is ever forgotten.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from remuda import embedded
from remuda.config import Settings
from remuda.errors import (
    BadInput,
    DatabaseUnavailable,
    PermanentProviderError,
    ProviderError,
    TransientProviderError,
    VmUnreachable,
)
from remuda.hooks import HookSettings, hooks_of
from remuda.models import command_vms as book
from remuda.models.database import make_engine, transact
from remuda.workers.providers.base import Provider, VmDescription, VmSpec, VmState
from remuda.workers.providers.command.output import names_of, place_of, told_by
from remuda.workers.providers.command.running import run_hook

__all__ = ["CommandProvider"]

T = TypeVar("T")
_OURS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}-[0-9a-f]{14}")
_SPACE = uuid.UUID("5b0f4f8e-9c1d-4d6f-8f51-6f3f5a1f7d0e")
_STATES: Mapping[str, VmState] = {"making": "pending", "made": "running", "deleting": "stopped"}
_MARGIN_S = 60.0  # of a call beyond its hooks: killing them, waiting for another's
_SECRETS = ("REMUDA_", "RESALLOC_", "PG")  # Remuda's own settings are not the hooks' business

_engines: dict[tuple[int, str], Engine] = {}
_lock = threading.Lock()


class _Deleted(TransientProviderError):
    """Somebody else deleted the VM while we waited for our turn."""


class CommandProvider(Provider):
    """Whatever hooks make: virtual machines, boards on a shelf, reservations elsewhere."""

    kind = "command"

    def __init__(self, settings: Settings, hooks: HookSettings | None = None) -> None:
        """Know no hooks yet, but those given; see `of_pool`."""
        self._settings = settings
        self._hooks = hooks

    def of_pool(self, settings: Mapping[str, Any]) -> CommandProvider:
        """Return the provider with a pool's hooks; raises PermanentProviderError."""
        try:
            return CommandProvider(self._settings, hooks_of(settings))
        except BadInput as error:
            raise PermanentProviderError(str(error)) from error

    def deadline_s(self, call: str) -> float:
        """Return what the hooks of a call may take, and what goes with it."""
        if self._hooks is None:
            return super().deadline_s(call)
        hooks = {"spawn": ("new",), "terminate": ("delete", "list"), "describe": (), "reboot": ()}
        hooks["price"] = ()
        return sum(self._hooks.timeouts_s[hook] for hook in hooks.get(call, (call,))) + _MARGIN_S

    def spawn(self, spec: VmSpec, token: str) -> str:
        """Enter the VM in the book and run `cmd_new`; it has made it when it succeeds."""
        if self._hooks is None:
            return self.of_pool(spec.settings).spawn(spec, token)
        counters = self._hooks.counters
        name = _name_of(spec.name, token, spec.pool)
        entry = self._transact(
            lambda c: book.enter(c, name, token=token, pool=spec.pool, counters=counters)
        )
        if entry.state == "made":
            return entry.provider_id
        with self._held(entry.id, "new") as (held, holder):
            if held.state == "deleting":
                raise TransientProviderError(f"{held.provider_id} is being deleted")
            if held.state == "made":  # by the one we waited for
                return held.provider_id
            printed = self._run("new", held, _wanted(spec))
            told_by(printed)
            if not self._transact(lambda c: book.let_go(c, held.id, holder, output=printed)):
                raise TransientProviderError("cmd_new took so long that another went on with it")
        return entry.provider_id

    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        """Look into the book: what hooks made is there until `cmd_delete` says otherwise."""
        wanted = builtins.list(ids)
        found = self._transact(lambda c: book.find(c, provider_ids=wanted))
        return {entry.provider_id: self._described(entry) for entry in found}

    def list(self, tag: str) -> builtins.list[VmDescription]:
        """Return those in the book, and what `cmd_list` names besides.

        A name that Remuda gave once to a VM of the pool, and no longer knows, is that of an orphan: it
        has a token of its own, that is nobody's. Any other is not the pool's: it is told when all are
        asked for, without a token, as it is not ours to end.
        """
        entries = self._transact(lambda c: book.find(c, pool=tag or None))
        found = [self._described(entry) for entry in entries]
        if self._hooks is None or "list" not in self._hooks.commands:
            return found
        names = self._names(tag)
        known = {e.provider_id for e in self._transact(lambda c: book.find(c, provider_ids=names))}
        left = [name for name in names if name not in known]
        if not tag:
            return found + [_stray(name) for name in left]
        return found + [_orphaned(name, tag) for name in left if _is_of(name, tag)]

    def terminate(self, provider_id: str) -> None:
        """Run `cmd_delete` until it succeeds, and `cmd_list`, if there is one, names it no more."""
        if self._hooks is None or not _OURS.fullmatch(provider_id):
            return  # never one of ours
        found = self._transact(lambda c: book.find(c, provider_ids=[provider_id]))
        if not found:
            if "list" in self._hooks.commands:  # what it named once; deleting twice is harmless
                self._run("delete", _orphan(provider_id))
            return
        with (
            suppress(_Deleted),
            self._held(found[0].id, "delete", state="deleting") as (held, holder),
        ):
            self._run("delete", held)
            if "list" in self._hooks.commands and provider_id in self._names(held.pool):
                raise TransientProviderError(
                    f"cmd_delete succeeded, but cmd_list still names {provider_id}"
                )
            self._transact(lambda c: book.strike_out(c, held.id, holder))

    def livecheck(self, provider_id: str, description: VmDescription) -> None:
        """Run `cmd_livecheck`, if there is one; its failure, or its silence, is the VM's."""
        self._check("livecheck", provider_id)

    def release(self, provider_id: str) -> None:
        """Run `cmd_release`, if there is one."""
        self._check("release", provider_id)

    def validate(self, settings: Mapping[str, Any]) -> None:
        """Check the hooks without running any."""
        hooks_of(settings)

    # ---- hooks

    def _check(self, call: str, provider_id: str) -> None:
        if self._hooks is None or call not in self._hooks.commands:
            return
        found = self._transact(lambda c: book.find(c, provider_ids=[provider_id]))
        if not found:
            raise VmUnreachable(f"there is no {provider_id}")
        try:
            self._run(call, found[0])
        except ProviderError as error:
            if call == "release":
                raise
            raise VmUnreachable(error.message) from error

    def _names(self, pool: str) -> builtins.list[str]:
        about = {"REMUDA_POOL_ID": pool, "RESALLOC_POOL_ID": pool}
        return names_of(self._run("list", None, about))

    def _run(
        self, call: str, entry: book.Entry | None, more: Mapping[str, str] | None = None
    ) -> str:
        assert self._hooks is not None
        environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith(_SECRETS)},
            **self._hooks.environment,
            **(_about(entry) if entry else {}),
            **(more or {}),
            "REMUDA_HOOK": call,
        }
        return run_hook(
            f"cmd_{call}",
            self._hooks.commands[call],
            environment=environment,
            timeout_s=self._hooks.timeouts_s[call],
        )

    @contextmanager
    def _held(
        self, vm_id: int, call: str, *, state: str | None = None
    ) -> Iterator[tuple[book.Entry, str]]:
        """Be the only one that runs hooks on a VM; waits for another to be done with it.

        What was not let go inside is at the end. A holder that died is waited for no longer than its
        hook could have lived.
        """
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
        seconds = self.deadline_s("terminate" if call == "delete" else "spawn")
        ends_at = time.monotonic() + seconds - _MARGIN_S / 2
        while True:
            held = self._transact(
                lambda c: book.hold(c, vm_id, holder, seconds=seconds, state=state)
            )
            if held is not None:
                break
            if not self._transact(lambda c: book.exists(c, vm_id)):
                raise _Deleted("it was deleted meanwhile")
            if time.monotonic() > ends_at:
                raise TransientProviderError("another worker still runs a hook on it")
            time.sleep(0.1)
        try:
            yield held, holder
        finally:
            self._transact(lambda c: book.let_go(c, vm_id, holder))

    # ---- the book

    def _described(self, entry: book.Entry) -> VmDescription:
        told = told_by(entry.output) if entry.state != "making" else {}
        login = self._hooks.login if self._hooks else {}
        home = f".remuda/{entry.provider_id}"
        return VmDescription(
            entry.provider_id,
            _STATES[entry.state],
            address=place_of(told, name=entry.provider_id, login=login, home=home),
            private_ip=told.get("private_ip"),
            public_ip=told.get("public_ip"),
            token=entry.token,
            pool=entry.pool,
            cores=told.get("cores"),
            memory_bytes=told.get("memory_bytes"),
            price=told.get("price"),
        )

    def _transact(self, work: Callable[[Connection], T]) -> T:
        try:
            return transact(_engine(self._settings), work)
        except DatabaseUnavailable as error:
            raise TransientProviderError(f"the book cannot be read: {error.message}") from error


def _engine(settings: Settings) -> Engine:
    """Return this process's engine for the database of the settings."""
    if settings.database_url is not None:
        url: str | None = settings.database_url.get_secret_value()
    else:
        url = embedded.server_url(settings)
    if url is None:
        raise DatabaseUnavailable("there is no database yet")
    key = (os.getpid(), url)
    with _lock:
        if key not in _engines:
            _engines[key] = make_engine(url, pool_size=4)
        return _engines[key]


def _name_of(name: str, token: str, pool: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", name).lstrip("-")[:64] or "vm"
    return f"{stem}-{_digest(token)[:8]}{_digest(pool)[:6]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_of(name: str, pool: str) -> bool:
    """Return whether a name is one that Remuda gives to VMs of the pool."""
    return bool(_OURS.fullmatch(name)) and name.endswith(_digest(pool)[:6])


def _orphaned(name: str, pool: str) -> VmDescription:
    return replace(_stray(name), token=str(uuid.uuid5(_SPACE, name)), pool=pool)


def _stray(name: str) -> VmDescription:
    return VmDescription(name, "running", address={"name": name})


def _orphan(name: str) -> book.Entry:
    return book.Entry(0, name, "", "", -1, "deleting", "", {})


def _wanted(spec: VmSpec) -> dict[str, str]:
    return {
        "REMUDA_VM_NAME": spec.name,
        "REMUDA_SLOTS": str(spec.slots),
        "REMUDA_MEMORY_BYTES": str(spec.memory_bytes or ""),
        "REMUDA_IMAGE": spec.image,
        "REMUDA_OFFER": spec.offer,
        "REMUDA_MAX_PRICE": "" if spec.max_price is None else f"{spec.max_price:g}",
    }


def _about(entry: book.Entry) -> dict[str, str]:
    number = str(entry.number) if entry.number >= 0 else ""
    data = base64.b64encode(entry.output.encode()).decode()
    return {
        "REMUDA_PROVIDER_ID": entry.provider_id,
        "REMUDA_VM_TOKEN": entry.token,
        "REMUDA_VM_NUMBER": number,
        "REMUDA_VM_DATA": entry.output,
        "REMUDA_POOL_ID": entry.pool,
        "RESALLOC_NAME": entry.provider_id,
        "RESALLOC_ID": str(entry.id),
        "RESALLOC_POOL_ID": entry.pool,
        "RESALLOC_ID_IN_POOL": number,
        "RESALLOC_RESOURCE_DATA": data,
        **{f"REMUDA_COUNTER_{name}": str(value) for name, value in entry.counters.items()},
        **{f"RESALLOC_NAMED_COUNTER_{name}": str(v) for name, v in entry.counters.items()},
    }
