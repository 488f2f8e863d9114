"""The `ec2` provider: a VM is an instance with two tags, its pool's and its token.

RunInstances is asked with a client token made of ours and the place, so a call that is repeated there
makes nothing new. A call that goes on to another place looks first for what an earlier one has made, and
of several that were made all the same the oldest is kept.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from remuda.clouds import Ec2, ec2_of
from remuda.config import Settings
from remuda.errors import (
    BadInput,
    CapacityError,
    PermanentProviderError,
    ProviderError,
    TransientProviderError,
)
from remuda.workers.providers import firstboot
from remuda.workers.providers.base import Provider, VmDescription, VmSpec
from remuda.workers.providers.ec2.asking import ID, by_id, spot_requests, tagged
from remuda.workers.providers.ec2.clients import Client, client_of
from remuda.workers.providers.ec2.errors import code_of, told
from remuda.workers.providers.ec2.instances import (
    cores_of,
    interruption_of,
    ips_of,
    oldest,
    pool_of,
    state_of,
    token_of,
)
from remuda.workers.providers.ec2.launch import (
    MAX_USER_DATA_BYTES,
    POOL,
    TOKEN,
    places,
    request,
)
from remuda.workers.providers.ec2.prices import spot_prices, spot_prices_of

__all__ = ["Ec2Provider"]

log = logging.getLogger(__name__)
_LIVING = ("pending", "running", "stopping", "stopped")


class Ec2Provider(Provider):
    """Instances of one region, as a pool's settings have them."""

    kind = "ec2"

    def __init__(self, settings: Settings, cloud: Ec2 | None = None) -> None:
        """Know no region yet, unless told; see `of_pool`."""
        self._settings = settings
        self._cloud = cloud

    def of_pool(self, settings: Mapping[str, Any]) -> Ec2Provider:
        """Return the provider of a pool; raises PermanentProviderError."""
        try:
            return Ec2Provider(self._settings, ec2_of(settings))
        except BadInput as error:
            raise PermanentProviderError(error.message, hint=error.hint) from error

    @property
    def client(self) -> Client:
        """The client, one for all providers of the region."""
        return client_of(self._told())

    def spawn(self, spec: VmSpec, token: str) -> str:
        """Launch an instance in the first place that has one; it is pending then."""
        if self._cloud is None:
            return self.of_pool(spec.settings).spawn(spec, token)
        cloud, client = self._cloud, self.client
        with _nothing_asked():
            data = self._user_data(cloud, spec, token)
            asked = [request(cloud, spec, token, place, data) for place in places(cloud)]
        before = self._living(client, token)
        if before:
            return self._one_of(client, spec, token, before)
        made = self._launched(client, spec, asked)
        client.note_launch(made["InstanceId"], spec.pool, token)
        if len(asked) == 1:
            return str(made["InstanceId"])
        living = {i["InstanceId"]: i for i in (made, *self._living(client, token))}
        return self._one_of(client, spec, token, builtins.list(living.values()))

    def describe(self, ids: Iterable[str]) -> dict[str, VmDescription]:
        """Ask for up to 1,000 at a time; one just launched that EC2 does not show yet is pending."""
        wanted = dict.fromkeys(vm_id for vm_id in ids if ID.fullmatch(vm_id))
        client = self.client
        found = self._described(client, by_id(client, builtins.list(wanted)))
        for vm_id, (pool, token) in client.new().items():
            if vm_id in wanted and vm_id not in found:
                found[vm_id] = VmDescription(vm_id, "pending", token=token, pool=pool)
        return found

    def list(self, tag: str) -> builtins.list[VmDescription]:
        """Ask for those tagged, page by page; those terminated are left out."""
        client = self.client
        found = self._described(client, tagged(client, POOL, tag))
        for vm_id, (pool, token) in client.new().items():
            if vm_id not in found and tag in ("", pool):
                found[vm_id] = VmDescription(vm_id, "pending", token=token, pool=pool)
        return [vm for vm in found.values() if vm.state != "gone"]

    def terminate(self, provider_id: str) -> None:
        """Ask for it, unless it is gone; an instance that is none of ours is refused."""
        if not ID.fullmatch(provider_id):
            return
        client = self.client
        found = by_id(client, [provider_id])
        new = provider_id in client.new()
        if not (found or new) or (found and state_of(found[0]) == "gone"):
            return
        if found and not token_of(found[0]):
            raise PermanentProviderError(
                f"instance {provider_id} has no tag {TOKEN}: it is none of Remuda's VMs"
            )
        try:
            with told(f"to terminate {provider_id}"):
                client.api.terminate_instances(InstanceIds=[provider_id])
        except TransientProviderError as error:
            if not new and code_of(error.__cause__ or error) == "InvalidInstanceID.NotFound":
                return
            raise
        client.forget(provider_id)

    def price(self, spec: VmSpec) -> float | None:
        """Return what a spot instance costs in the first of the pool's zones that tells.

        Of a pool that names no zones it is the dearest of the region's. What is not bought at the spot
        market has no price here.
        """
        if self._cloud is None:
            return self.of_pool(spec.settings).price(spec)
        cloud = self._cloud
        if not (cloud.spot and cloud.instance_type):
            return None
        found = spot_prices(self.client, cloud.instance_type)
        if not cloud.zones:
            return max(found.values(), default=None)
        return next((found[zone] for zone in cloud.zones if zone in found), None)

    def validate(self, settings: Mapping[str, Any]) -> None:
        """Check what can be checked without asking EC2; see `remuda.clouds`."""
        ec2_of(settings)

    # ---- launching

    def _told(self) -> Ec2:
        if self._cloud is None:
            raise PermanentProviderError("the ec2 provider has not been told of a pool")
        return self._cloud

    def _user_data(self, cloud: Ec2, spec: VmSpec, token: str) -> bytes:
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

    def _launched(
        self, client: Client, spec: VmSpec, asked: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the instance that the first place with capacity for it gives."""
        nothing = True
        for i, arguments in enumerate(asked, 1):
            try:
                with told(f"to launch {spec.name}"):
                    return dict(client.api.run_instances(**arguments)["Instances"][0])
            except ProviderError as error:
                nothing = error.made_nothing = nothing and error.made_nothing
                if i == len(asked) or not isinstance(error, CapacityError):
                    raise
                log.info("no place for VM %s, the next is asked: %s", spec.name, error.message)
        raise AssertionError("there is always a place to ask")

    def _living(self, client: Client, token: str) -> builtins.list[dict[str, Any]]:
        found = tagged(client, TOKEN, token)
        return [instance for instance in found if instance["State"]["Name"] in _LIVING]

    def _one_of(
        self, client: Client, spec: VmSpec, token: str, found: builtins.list[dict[str, Any]]
    ) -> str:
        """Return the oldest of a token's instances, and end the others."""
        kept = oldest(found)["InstanceId"]
        for other in (i["InstanceId"] for i in found if i["InstanceId"] != kept):
            log.warning("VM %s was launched twice: %s is ended, %s stays", spec.name, other, kept)
            with told(f"to terminate {other}"):
                client.api.terminate_instances(InstanceIds=[other])
        client.note_launch(kept, spec.pool, token)
        return str(kept)

    # ---- looking

    def _described(
        self, client: Client, instances: Iterable[dict[str, Any]]
    ) -> dict[str, VmDescription]:
        listed = builtins.list(instances)
        requests = spot_requests(client, listed)
        prices = spot_prices_of(client, listed)
        key = self._key() if listed else None
        found = {}
        for instance in listed:
            vm_id, token, state = instance["InstanceId"], token_of(instance), state_of(instance)
            private, public = ips_of(instance)
            where = self._address(private, public) if state in ("pending", "running") else None
            login = self._told().login
            address = (
                firstboot.address_of(key, token, where, user=login.user, port=login.port)
                if key and where and token
                else {}
            )
            found[vm_id] = VmDescription(
                vm_id,
                state,
                address=address,
                private_ip=private,
                public_ip=public,
                token=token,
                interruption_at=interruption_of(
                    instance, requests.get(str(instance.get("SpotInstanceRequestId")))
                ),
                pool=pool_of(instance),
                cores=cores_of(instance),
                price=prices.get(vm_id),
            )
        return found

    def _address(self, private: str | None, public: str | None) -> str | None:
        asked = self._told().address
        return {"public": public, "private": private, "": public or private}[asked]

    def _key(self) -> firstboot.PoolKey | None:
        """Return the pool's key; without it VMs can be seen and ended, but not be reached."""
        try:
            return firstboot.read_key(self._told().login.key_file)
        except ProviderError as error:
            log.error("VMs of EC2 cannot be reached: %s", error)
            return None


@contextmanager
def _nothing_asked() -> Iterator[None]:
    try:
        yield
    except ProviderError as error:
        error.made_nothing = True
        raise
