"""The `static` provider: the hosts of a list. A VM is one of them, taken from the shelf and put back.

What is true stands on the hosts: the claim in a host's folder says whose VM it is, so any number of
workers on any machines agree. To spawn, a host is claimed, then all hosts are looked at again, then
the claim is confirmed, after every other unconfirmed claim of that token was revoked: of two that
spawn for one token at once, one finds its claim gone or sees the other's confirmed.
"""

from __future__ import annotations

import builtins
import hashlib
import ipaddress
import logging
import random
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from remuda.config import Settings
from remuda.errors import (
    AuthError,
    BackendError,
    BadInput,
    CapacityError,
    NoResources,
    PermanentProviderError,
    ProviderAuthError,
    ProviderError,
    TransientProviderError,
    VmUnreachable,
)
from remuda.hosts import Host, hosts_of
from remuda.workers import remote
from remuda.workers.backends.slurm import serve_arguments
from remuda.workers.providers.base import Provider, VmDescription, VmSpec, VmState
from remuda.workers.session import NEED

log = logging.getLogger(__name__)
LOOK_S = 10.0  # for one exchange with one host
START_S = 60.0  # to copy the runner there and start it, or to end it all
AT_ONCE = 16
ROUNDS = 20


@dataclass(frozen=True, slots=True)
class _Seen:
    """A host as it was found: its claim, or why it is not known."""

    host: Host
    claim: Mapping[str, Any] | None = None
    home: str = ""
    state: VmState = "pending"
    error: ProviderError | None = None
    fit: bool = True

    @property
    def token(self) -> str:
        return str(self.claim["token"]) if self.claim else ""

    def described(self) -> VmDescription:
        try:
            ip = str(ipaddress.ip_address(self.host.address))
        except ValueError:
            ip = None
        return VmDescription(
            _id_of(self.host, self.token),
            self.state,
            address={**self.host.way(), "home": self.home},
            private_ip=ip,
            token=self.token,
            pool=str(self.claim.get("pool", "")) if self.claim else "",
            price=self.host.price_per_hour,
            cores=self.host.cores or None,
            memory_bytes=self.host.memory_bytes or None,
        )


class StaticProvider(Provider):
    """Given hosts; each is one VM at a time."""

    kind = "static"

    def __init__(self, settings: Settings, hosts: Sequence[Host] = ()) -> None:
        """Know no host yet, but those given; see `of_pool`."""
        self._settings = settings
        self._hosts = {host.name: host for host in hosts}
        self._pause = threading.Event()  # never set

    def of_pool(self, settings: Mapping[str, Any]) -> StaticProvider:
        """Return the provider with a pool's hosts; raises PermanentProviderError."""
        try:
            return StaticProvider(self._settings, hosts_of(settings))
        except BadInput as error:
            raise PermanentProviderError(str(error)) from error

    def spawn(self, spec: VmSpec, token: str) -> str:
        """Claim a free host, start its runner; returns when it listens.

        CapacityError if all are taken, TransientProviderError if those not taken do not answer.
        """
        if spec.settings and not self._hosts:
            return self.of_pool(spec.settings).spawn(spec, token)
        asked = False
        for round_ in range(ROUNDS):
            seen = self._look(self._hosts.values())
            mine = [s for s in seen if s.token == token]
            final = next((s for s in mine if s.claim and s.claim.get("confirmed")), None)
            keep = final or (mine[0] if mine else None)
            if keep is None:
                try:
                    free = _free_host(spec, token, seen)
                except ProviderError as error:
                    error.made_nothing = not asked
                    raise
                asked = True
                _ask(free, "claim", token=token, pool=spec.pool, name=spec.name)
                continue
            others = [s for s in mine if s is not keep]
            revoked = [not _ask(s.host, "revoke", token=token)["final"] for s in others]
            if final is None:
                home = _ask(keep.host, "confirm", token=token)["home"] if all(revoked) else None
                if home is None:
                    self._pause.wait(random.uniform(0, 0.05) * (round_ + 1))
                    continue
            self._start(keep.host, keep.home, spec)
            return _id_of(keep.host, token)
        raise TransientProviderError(f"could not agree with others on a host for VM {spec.name}")

    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        """Ask the hosts; a VM is gone when its host says that another, or nobody, has claimed it."""
        wanted = {vm_id: host for vm_id in ids if (host := self._host_of(vm_id))}
        seen = {s.host.name: s for s in self._look(wanted.values(), whole=True)}
        found = {}
        for vm_id, host in wanted.items():
            one = seen[host.name]
            if one.claim and _id_of(host, one.token) == vm_id:
                found[vm_id] = one.described()
        return found

    def list(self, tag: str) -> builtins.list[VmDescription]:
        """Ask all hosts; TransientProviderError if one does not answer, for it may have a VM."""
        seen = self._look(self._hosts.values(), whole=True)
        return [s.described() for s in seen if s.claim and tag in ("", s.claim.get("pool"))]

    def terminate(self, provider_id: str) -> None:
        """Kill what runs there, remove what it left, and put the host back; certain on return."""
        host = self._host_of(provider_id)
        if host is None:
            return
        (one,) = self._look([host], whole=True)
        if not one.claim or _id_of(host, one.token) != provider_id:
            return
        try:
            remote.put_runner(host, one.home, timeout_s=START_S)
        except (VmUnreachable, BackendError) as error:
            log.info("no runner on host %s to stop its jobs with: %s", host.name, error)
        _ask(host, "release", token=one.token, timeout_s=START_S)

    def price(self, spec: VmSpec) -> float | None:
        """Return the price of the cheapest host that would do, if those of all such are known."""
        if spec.settings and not self._hosts:
            return self.of_pool(spec.settings).price(spec)
        prices = [host.price_per_hour for host in self._hosts.values() if _fits(host, spec)]
        known = [price for price in prices if price is not None]
        return min(known) if known and len(known) == len(prices) else None

    def validate(self, settings: Mapping[str, Any]) -> None:
        """Accept {"hosts": [...]} and "slurm"; see `remuda.hosts`."""
        hosts_of(settings)

    # ---- hosts

    def _host_of(self, provider_id: str) -> Host | None:
        """Return the host of an id; None if it can be none of ours."""
        name, mark, digest = provider_id.rpartition("#")
        if not mark or not name or len(digest) != 12:
            return None
        if name not in self._hosts:
            raise PermanentProviderError(f"host {name} is not among those of its pool")
        return self._hosts[name]

    def _look(self, hosts: Iterable[Host], *, whole: bool = False) -> builtins.list[_Seen]:
        """Look at hosts, all at once; with `whole` one that is not known is raised."""
        seen = _at_once(list(dict.fromkeys(hosts)))
        for one in seen:
            if one.error is not None and whole:
                raise one.error
        return seen

    def _start(self, host: Host, home: str, spec: VmSpec) -> None:
        arguments = serve_arguments(
            name=spec.name,
            slots=spec.slots,
            memory_bytes=spec.memory_bytes or host.memory_bytes,
            heartbeat_s=spec.heartbeat_s,
            settings=spec.settings,
        )
        with _told(host):
            remote.start_runner(host, home, arguments, timeout_s=START_S)


@contextmanager
def _told(host: Host) -> Iterator[None]:
    """Turn what goes wrong with a host into a ProviderError."""
    try:
        yield
    except AuthError as error:
        log.error("host %s is refused: %s", host.name, error)
        raise ProviderAuthError(error.message, hint=error.hint) from error
    except NoResources as error:
        raise PermanentProviderError(error.message, hint=error.hint) from error
    except (VmUnreachable, BackendError) as error:
        raise TransientProviderError(error.message, hint=error.hint) from error


def _ask(host: Host, do: str, *, timeout_s: float = LOOK_S, **fields: Any) -> dict[str, Any]:
    with _told(host):
        return remote.call(host, do, place=host.home, timeout_s=timeout_s, **fields)


def _look_at(host: Host) -> _Seen:
    try:
        answer = _ask(host, "look")
    except ProviderError as error:
        return _Seen(host, error=error)
    if not answer["claim"]:
        return _Seen(host, fit=answer.get("python", True))
    return _Seen(host, answer["claim"], answer["home"], answer["state"])


def _at_once(hosts: Sequence[Host]) -> builtins.list[_Seen]:
    if len(hosts) <= 1:
        return [_look_at(host) for host in hosts]
    with ThreadPoolExecutor(min(AT_ONCE, len(hosts)), thread_name_prefix="remuda-hosts") as pool:
        return list(pool.map(_look_at, hosts))


def _free_host(spec: VmSpec, token: str, seen: Sequence[_Seen]) -> Host:
    """Return a free host that is big enough; raises when there is none."""
    fits = [s for s in seen if _fits(s.host, spec)]
    if not fits:
        group = f" of group {spec.reserved_group}" if spec.reserved_group else ""
        raise PermanentProviderError(
            f"no host{group} has {spec.slots} cores and {spec.memory_bytes or 0} bytes of memory"
        )
    free = [s.host for s in fits if s.fit and s.claim is None and s.error is None]
    if (
        free
    ):  # of equal ones tokens differ in which they like best: many at once seldom want the same
        return min(free, key=lambda host: (_dear(host), _digest(f"{token} {host.name}")))
    for one in fits:
        if one.error is not None:
            raise one.error
    unfit = [one.host.name for one in fits if not one.fit]
    if unfit:
        raise PermanentProviderError(f"no python3 >= 3.7 on {', '.join(unfit)[:500]}", hint=NEED)
    raise CapacityError(f"all {len(fits)} hosts are taken", hint="add hosts, or fewer VMs")


def _dear(host: Host) -> tuple[bool, float]:
    return host.price_per_hour is None, host.price_per_hour or 0.0


def _fits(host: Host, spec: VmSpec) -> bool:
    room = not host.memory_bytes or (spec.memory_bytes or 0) <= host.memory_bytes
    if host.group != spec.reserved_group:
        return False
    return room and (not host.cores or spec.slots <= host.cores)


def _id_of(host: Host, token: str) -> str:
    return f"{host.name}#{_digest(token)[:12]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
