"""The `openstack` provider: a VM is a server whose metadata tell its pool and its token.

Nova has no client tokens. So a server's name ends in a digest of its token, one of that name is looked
for before a server is made, and again after: of several the oldest stays. Within a process one thread at
a time launches a VM. What two processes can still do in the same second is end each other's; then the VM is
gone, and replaced, and nothing is left over.
"""

from __future__ import annotations

import builtins
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from remuda.clouds import Openstack, openstack_of
from remuda.config import Settings
from remuda.errors import (
    BadInput,
    CapacityError,
    PermanentProviderError,
    ProviderError,
)
from remuda.workers.providers import firstboot
from remuda.workers.providers.base import Provider, VmDescription, VmSpec
from remuda.workers.providers.openstack import floating
from remuda.workers.providers.openstack.asking import (
    ID,
    all_servers,
    delete_server,
    flavor_id,
    image_id,
    network_id,
    server_of,
    servers_named,
)
from remuda.workers.providers.openstack.clients import Client, client_of
from remuda.workers.providers.openstack.errors import of_fault, told
from remuda.workers.providers.openstack.servers import (
    MAX_USER_DATA_BYTES,
    TOKEN,
    ips_of,
    oldest,
    pool_of,
    request,
    size_of,
    state_of,
    token_of,
)

__all__ = ["OpenstackProvider"]

log = logging.getLogger(__name__)
SCHEDULE_S = 60.0  # for Nova to find a host, or to say that there is none
GONE_S = 30.0  # for a server that could not be built to go
MOST_S = 540.0  # for all zones
FEW = 8  # servers are asked for one by one, more by a list of all


class OpenstackProvider(Provider):
    """Servers of one cloud and region, as a pool's settings have them."""

    kind = "openstack"

    def __init__(self, settings: Settings, cloud: Openstack | None = None) -> None:
        """Know no cloud yet, unless told; see `of_pool`."""
        self._settings = settings
        self._cloud = cloud
        self._pause = threading.Event()  # never set

    def of_pool(self, settings: Mapping[str, Any]) -> OpenstackProvider:
        """Return the provider of a pool; raises PermanentProviderError."""
        try:
            return OpenstackProvider(self._settings, openstack_of(settings))
        except BadInput as error:
            raise PermanentProviderError(error.message, hint=error.hint) from error

    def deadline_s(self, call: str) -> float:
        """Return what a call may take; each zone may take its time to say that it has no host."""
        usual = super().deadline_s(call)
        zones = len(self._cloud.zones) if self._cloud else 0
        return max(usual, min(MOST_S, zones * (SCHEDULE_S + GONE_S))) if call == "spawn" else usual

    @property
    def client(self) -> Client:
        """The client, one for all providers of the cloud."""
        return client_of(self._told())

    def spawn(self, spec: VmSpec, token: str) -> str:
        """Make a server in the first zone that has a host for it; it is being built then."""
        if self._cloud is None:
            return self.of_pool(spec.settings).spawn(spec, token)
        cloud, client = self._cloud, self.client
        with client.lock(token):
            found = servers_named(client, token)
            if any(server.status != "ERROR" for server in found):
                return self._settled(client, spec, found)
            self._clear(client, found)
            asked = self._asked(client, cloud, spec, token)
            zones, nothing = cloud.zones or ("",), True
            for i, zone in enumerate(zones, 1):
                try:
                    with told(f"to launch {spec.name}"):
                        made = client.api.compute.create_server(**asked(zone))
                    return self._settled(client, spec, servers_named(client, token) or [made])
                except ProviderError as error:
                    nothing = error.made_nothing = nothing and error.made_nothing
                    if i == len(zones) or not isinstance(error, CapacityError):
                        raise
                    log.info("zone %s has none, the next is asked: %s", zone, error.message)
        raise AssertionError("there is always a zone to ask")

    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        """Ask for a few one by one, for more by a list of all; who is not in that is asked for, too."""
        wanted = builtins.list(dict.fromkeys(vm_id for vm_id in ids if ID.fullmatch(vm_id)))
        client, listed = self.client, {}
        if len(wanted) > FEW:
            listed = {server.id: server for server in all_servers(client)}
        servers = [listed.get(vm_id) or server_of(client, vm_id) for vm_id in wanted]
        return self._described(client, [server for server in servers if server is not None])

    def list(self, tag: str) -> builtins.list[VmDescription]:
        """List the project's servers, page by page, and pick ours."""
        client = self.client
        ours = [s for s in all_servers(client) if token_of(s) and tag in ("", pool_of(s))]
        return [vm for vm in self._described(client, ours).values() if vm.state != "gone"]

    def terminate(self, provider_id: str) -> None:
        """Take its floating IP back and ask for its end; a server that is none of ours is refused."""
        if not ID.fullmatch(provider_id):
            return
        client = self.client
        server = server_of(client, provider_id)
        if server is not None and not token_of(server):
            raise PermanentProviderError(
                f"server {provider_id} has no {TOKEN} in its metadata: it is none of Remuda's VMs"
            )
        if self._told().floating_network:
            floating.take_back(client, provider_id)
        if server is not None:
            delete_server(client, provider_id)

    def livecheck(self, provider_id: str, description: VmDescription) -> None:
        """Raise if Nova has it in ERROR, saying why."""
        server = server_of(self.client, provider_id)
        if server is not None and server.status == "ERROR":
            why = str((server.fault or {}).get("message", "no reason is told"))
            raise PermanentProviderError(f"OpenStack has {provider_id} in ERROR: {why[:500]}")

    def validate(self, settings: Mapping[str, Any]) -> None:
        """Check what can be checked without asking OpenStack; see `remuda.clouds`."""
        openstack_of(settings)

    # ---- launching

    def _told(self) -> Openstack:
        if self._cloud is None:
            raise PermanentProviderError("the openstack provider has not been told of a pool")
        return self._cloud

    def _asked(
        self, client: Client, cloud: Openstack, spec: VmSpec, token: str
    ) -> Callable[[str], dict[str, Any]]:
        """Return what makes the request for a zone; raises before anything was made."""
        try:
            data = _user_data(cloud, spec, token)
            image = image_id(client, spec)
            flavor = flavor_id(client, cloud.flavor)
            network_ids = tuple(network_id(client, name) for name in cloud.networks)
        except ProviderError as error:
            error.made_nothing = True
            raise
        return lambda zone: request(
            cloud,
            spec,
            token,
            zone=zone,
            flavor_id=flavor,
            image_id=image,
            network_ids=network_ids,
            user_data=data,
        )

    def _settled(self, client: Client, spec: VmSpec, found: builtins.list[Any]) -> str:
        """Return the server that stays, once it has a host; raises what Nova says if it gets none."""
        good = [server for server in found if server.status != "ERROR"]
        kept = oldest(good) if good else None
        for other in (server for server in found if server is not kept):
            log.warning(
                "VM %s: server %s is ended, %s stays", spec.name, other.id, kept and kept.id
            )
            delete_server(client, other.id)
        server = self._placed(client, kept.id) if kept is not None else found[0]
        if server is None:
            raise of_fault(spec.name, "it was gone at once")
        if server.status != "ERROR":
            return str(server.id)
        error = of_fault(spec.name, str((server.fault or {}).get("message", "")))
        error.made_nothing = self._clear(client, [server])
        raise error

    def _placed(self, client: Client, server_id: str) -> Any:
        """Return the server when Nova has done with looking for a host, or takes long; None: gone."""

        def decided() -> tuple[bool, Any]:
            server = server_of(client, server_id)
            waits = server is not None and server.status == "BUILD"
            return not (waits and server.task_state in (None, "scheduling")), server

        return self._wait(decided, SCHEDULE_S)

    def _clear(self, client: Client, servers: builtins.list[Any]) -> bool:
        """Delete servers that could not be built; True once they are gone."""
        for server in servers:
            delete_server(client, server.id)

        def gone() -> tuple[bool, bool]:
            left = any(server_of(client, server.id) is not None for server in servers)
            return not left, not left

        return bool(self._wait(gone, GONE_S))

    def _wait(self, look: Callable[[], tuple[bool, Any]], limit_s: float) -> Any:
        """Look until it is done, ever less often; return the last that was seen."""
        until, pause_s = time.monotonic() + limit_s, 0.1
        while True:
            done, seen = look()
            if done or time.monotonic() > until:
                return seen
            self._pause.wait(pause_s)
            pause_s = min(2.0, pause_s * 1.5)

    # ---- looking

    def _described(self, client: Client, servers: builtins.list[Any]) -> dict[str, VmDescription]:
        key = self._key() if servers else None
        cloud, found = self._told(), {}
        for server in servers:
            token, state = token_of(server), state_of(server)
            private, public = ips_of(server)
            cores, memory_bytes = size_of(server)
            if state == "running" and cloud.floating_network and public is None:
                public = floating.give(client, cloud.floating_network, server.id)
            asked = {"public": public, "private": private, "": public or private}[cloud.address]
            waits = cloud.floating_network and public is None and cloud.address != "private"
            where = asked if state == "running" and not waits else None
            address = (
                firstboot.address_of(
                    key, token, where, user=cloud.login.user, port=cloud.login.port
                )
                if key and where and token
                else {}
            )
            found[str(server.id)] = VmDescription(
                str(server.id),
                state,
                address=address,
                private_ip=private,
                public_ip=public,
                token=token,
                pool=pool_of(server),
                cores=cores,
                memory_bytes=memory_bytes,
            )
        return found

    def _key(self) -> firstboot.PoolKey | None:
        """Return the pool's key; without it VMs can be seen and ended, but not be reached."""
        try:
            return firstboot.read_key(self._told().login.key_file)
        except ProviderError as error:
            log.error("VMs of OpenStack cannot be reached: %s", error)
            return None


def _user_data(cloud: Openstack, spec: VmSpec, token: str) -> bytes:
    login = cloud.login
    return firstboot.user_data(
        firstboot.read_key(login.key_file),
        token,
        user=login.user,
        sudo=login.sudo,
        default_user=bool(cloud.key_name),
        hostname=spec.name,
        extra=firstboot.read_user_data(login.user_data_file) if login.user_data_file else "",
        most_bytes=MAX_USER_DATA_BYTES,
    )
