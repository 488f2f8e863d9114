"""The ledger: what the providers have, compared with the rows, both ways."""

from __future__ import annotations

import logging

from remuda.errors import RemudaError
from remuda.models import machines as models
from remuda.models.states import VmState
from remuda.tasks import contextualizing, messages
from remuda.tasks.providing import provider_for
from remuda.tasks.runtime import Runtime
from remuda.workers.providers.base import Provider, VmDescription

log = logging.getLogger(__name__)


def reconcile_vms(runtime: Runtime) -> int:
    """Compare rows and providers both ways; return how many VMs needed something.

    Intents and terminations whose message was lost are sent again. A machine of ours that no live
    row owns is terminated, after a grace (its row may be on its way to the database).
    """
    rows = runtime.transact(models.unfinished_vms)
    messages.spawn_vm(
        [row["id"] for row in rows if row["state"] in (VmState.NEW, *contextualizing.STATES)]
    )
    messages.terminate_vm(
        [row["id"] for row in rows if row["state"] in (VmState.STOPPING, VmState.ERROR)]
    )
    strays = 0
    for kind, pool, settings in runtime.transact(models.providers_in_use):
        try:
            provider = provider_for(runtime, kind, settings)
            described = provider.list(pool)
        except RemudaError as error:
            log.warning("the provider %s does not answer: %s", kind, error)
            continue
        strays += _end_strays(runtime, provider, described)
    return len(rows) + strays


def _end_strays(runtime: Runtime, provider: Provider, described: list[VmDescription]) -> int:
    tokens = [vm.token for vm in described if vm.token]
    known = runtime.transact(lambda c: models.live_tokens(c, tokens))
    count = 0
    for vm in described:
        if vm.token and vm.state != "gone" and vm.token not in known:
            log.warning(
                "machine %s at %s belongs to no VM; it is removed", vm.provider_id, provider.kind
            )
            provider.terminate(vm.provider_id)
            count += 1
    return count
