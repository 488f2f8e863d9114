"""The ledger: what the providers have, compared with the rows, both ways.

Intents and terminations whose message was lost are sent again. VMs the provider no longer has are
given up with their jobs placed anew, machines no VM owns are ended after a grace. Each sweep does a
bounded part of it, whatever there is.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection

from remuda.errors import RemudaError
from remuda.models import ledger as models
from remuda.models import machines, vm_life
from remuda.models.states import VmState
from remuda.tasks import contextualizing, messages, parallel
from remuda.tasks.attaching import vanish
from remuda.tasks.providing import provider_for
from remuda.tasks.runtime import Runtime
from remuda.workers import ledger
from remuda.workers.providers.base import VmDescription
from remuda.workers.vmpool import VMPool

log = logging.getLogger(__name__)
EVERY_S = 8.0  # between two looks at one pool
ELSEWHERE_S = 60.0  # between two looks at the machines of others
AT_ONCE = 8  # providers that are asked
DEADLINE_S = 120.0  # for a pool in one sweep
MOST_POOLS = 200  # in one sweep
MOST_ENDED = 50  # machines of a pool in one sweep
MOST_FOREIGN = 1000


def reconcile_vms(runtime: Runtime, *, every_s: float = EVERY_S) -> int:
    """Compare rows and providers both ways; return how many VMs and machines needed something.

    A provider that does not answer changes nothing. Workers that sweep at once share the pools.
    """
    rows = runtime.transact(machines.unfinished_vms)
    messages.spawn_vm(
        [row["id"] for row in rows if row["state"] in (VmState.NEW, *contextualizing.STATES)]
    )
    messages.terminate_vm(
        [row["id"] for row in rows if row["state"] in (VmState.STOPPING, VmState.ERROR)]
    )
    pools = runtime.transact(lambda c: models.claim_pools(c, every_s=every_s, most=MOST_POOLS))
    found = parallel.each(
        {("ledger", pool["id"]): partial(reconcile_pool, runtime, pool) for pool in pools},
        at_once=AT_ONCE,
        deadline_s=DEADLINE_S,
    )
    count = len(rows)
    for pool in pools:
        result = found[("ledger", pool["id"])]
        if isinstance(result, int):
            count += result
        elif isinstance(result, (RemudaError, TimeoutError)):
            log.warning("not all is known of the machines of pool %s: %s", pool["name"], result)
        else:
            log.error("pool %s cannot be compared", pool["name"], exc_info=result)
    if runtime.transact(lambda c: vm_life.due_sweep(c, "ledger_elsewhere", every_s=ELSEWHERE_S)):
        _elsewhere(runtime)
    return count


@dataclass(slots=True)
class _Account:
    """A pool as the provider of one of its offers has it, and what that listed."""

    kind: str
    settings: Mapping[str, Any]
    view: VMPool
    listed: list[VmDescription]


def reconcile_pool(runtime: Runtime, pool: Mapping[str, Any]) -> int:
    """Compare one pool's rows with its providers; return how many differences there were.

    What a provider does not tell of stays as it is; raises its ProviderError at the end.
    """
    accounts, problem = _ask_all(runtime, pool)
    row, vms = runtime.transact(lambda c: models.books(c, pool["id"]))  # after: it has what is new
    found = _Differences()
    for account in accounts:
        found.add(account, vms, row["now"])
    if found.interrupted:
        runtime.transact(lambda c: models.note_interruptions(c, found.interrupted))
    lost = _losses(runtime, row, found, complete=problem is None)
    _unowned(runtime, pool, accounts, found)
    if problem is not None:
        raise problem
    nothing = not any(account.listed for account in accounts)
    if nothing and runtime.transact(lambda c: models.finish_delete(c, pool["id"])):
        log.info("nothing is left of pool %s", pool["name"], extra={"pool_id": pool["id"]})
    return lost + len(found.unowned)


def _ask_all(
    runtime: Runtime, pool: Mapping[str, Any]
) -> tuple[list[_Account], RemudaError | None]:
    """Have all providers of a pool list its machines; also return why one did not, if so."""
    accounts, problem = [], None
    for kind, tag, settings in runtime.transact(lambda c: machines.providers_in_use(c, pool["id"])):
        try:
            provider = provider_for(runtime, kind, settings)
            known = (pool["name"], tag)
            view = VMPool(pool["id"], provider, runtime.transact, known=known)
            accounts.append(_Account(kind, settings, view, view.machines()))
        except RemudaError as error:
            problem = error
    return accounts, problem


class _Differences:
    """What all the providers that answered made of a pool's rows."""

    def __init__(self) -> None:
        self.missing: list[tuple[ledger.VmRow, VMPool]] = []
        self.unowned: dict[tuple[str, str], ledger.Machine] = {}  # by provider, and its id
        self.interrupted: dict[int, datetime] = {}
        self.live = 0

    def add(self, account: _Account, vms: Sequence[Mapping[str, Any]], now: datetime) -> None:
        mine = [
            _row(vm)
            for vm in vms
            if (vm["provider"], vm["settings"]) == (account.kind, account.settings)
        ]
        others = [_row(vm) for vm in vms if vm["provider"] == account.kind]
        machines = [
            ledger.Machine(vm.provider_id, vm.token, vm.interruption_at) for vm in account.listed
        ]
        self.missing += [(row, account.view) for row in ledger.compare(mine, machines, now).missing]
        whole = ledger.compare(others, machines, now)  # another offer of the account may own it
        self.unowned |= {(account.kind, m.provider_id): m for m in whole.unowned}
        self.interrupted |= whole.interrupted
        ending = (VmState.STOPPING, VmState.ERROR)
        self.live += sum(row.provider_id is not None and row.state not in ending for row in mine)


def _row(vm: Mapping[str, Any]) -> ledger.VmRow:
    return ledger.VmRow(**{name: vm[name] for name in ledger.VmRow.__slots__})


def _losses(
    runtime: Runtime, pool: Mapping[str, Any], found: _Differences, *, complete: bool
) -> int:
    """Give up the missing VMs that their provider denies, unless so many cannot be believed."""
    gone = _denied(found.missing)
    verdict = ledger.judge(
        gone=gone,
        live=found.live,
        now=pool["now"],
        frozen_at=pool["frozen_at"],
        confirmed=pool["loss_confirmed_at"] is not None,
        grace_s=runtime.settings.loss_grace_s,
    )
    about = {"pool_id": pool["id"]}
    believed = verdict.what == "BELIEVE"
    thaw = believed and (complete or bool(gone))

    def record(connection: Connection) -> None:
        if not believed:
            models.freeze(connection, pool["id"], verdict.reason)
        models.note_reconciled(connection, pool["id"], thaw=thaw)

    for vm_id in gone if believed else ():
        vanish(runtime, vm_id, "its provider no longer has the VM")
    runtime.transact(record)
    if not believed:
        told = log.error if verdict.what == "FREEZE" else log.info
        told("pool %s is frozen: %s", pool["name"], verdict.reason, extra=about)
    elif thaw and pool["frozen_at"] is not None:
        reason = verdict.reason or "its VMs are there again"
        log.warning("pool %s goes on: %s", pool["name"], reason, extra=about)
    return len(gone)


def _denied(missing: Sequence[tuple[ledger.VmRow, VMPool]]) -> list[int]:
    """Return those of the missing VMs that their providers deny too, asked for by name, twice."""
    by_view: dict[int, list[tuple[ledger.VmRow, VMPool]]] = defaultdict(list)
    for row, view in missing:
        by_view[id(view)].append((row, view))
    gone = []
    for some in by_view.values():
        view, left = some[0][1], [row for row, _ in some]
        try:
            for _ in range(2):  # an answer that leaves out some may leave out the others next time
                there = view.describe([str(row.provider_id) for row in left])
                left = [row for row in left if row.provider_id not in there]
        except RemudaError as error:
            log.warning("%d missing VMs cannot be asked for: %s", len(some), error)
            continue
        gone += [row.id for row in left]
    return gone


def _unowned(
    runtime: Runtime, pool: Mapping[str, Any], accounts: Sequence[_Account], found: _Differences
) -> None:
    """Book the machines no VM owns; end those past their grace, some in each sweep."""
    by_kind: dict[str, list[dict[str, str]]] = defaultdict(list)
    for (kind, provider_id), stray in found.unowned.items():
        by_kind[kind].append({"provider_id": provider_id, "tag": pool["tag"], "token": stray.token})
    for kind, seen in by_kind.items():
        runtime.transact(lambda c, kind=kind, seen=seen: models.note_unowned(c, kind, seen))  # type: ignore[misc]
    _close_books(runtime, pool, accounts, [provider_id for _, provider_id in found.unowned])
    due = runtime.transact(
        lambda c: models.to_terminate(
            c, pool["id"], grace_s=runtime.settings.unowned_grace_s, most=MOST_ENDED
        )
    )
    where = {(a.kind, vm.provider_id): a.view for a in accounts for vm in a.listed}
    errors: dict[int, str | None] = {}
    for machine in due:
        view = where.get((machine["provider"], machine["provider_id"]))
        if view is None:
            continue  # not listed now: nobody to ask, or gone
        log.warning(
            "machine %s at %s belongs to no VM; it is removed",
            machine["provider_id"],
            machine["provider"],
            extra={"pool_id": pool["id"]},
        )
        try:
            view.terminate(machine["provider_id"], look=False)
            errors[machine["id"]] = None
        except RemudaError as error:
            errors[machine["id"]] = str(error)
    if errors:
        runtime.transact(lambda c: models.note_terminations(c, errors))
        _close_books(runtime, pool, accounts, [], only=set(errors))


def _close_books(
    runtime: Runtime,
    pool: Mapping[str, Any],
    accounts: Sequence[_Account],
    listed: Sequence[str],
    *,
    only: set[int] | None = None,
) -> None:
    """Close the books on machines that a VM owns by now, or that every provider denies."""
    unseen = [
        machine
        for machine in runtime.transact(lambda c: models.unseen(c, pool["id"], listed))
        if only is None or machine["id"] in only
    ]
    if not unseen:
        return
    owned = runtime.transact(lambda c: machines_owned(c, pool["id"]))
    over = [machine["id"] for machine in unseen if machine["provider_id"] in owned]
    for kind in {machine["provider"] for machine in unseen}:
        names = [m["provider_id"] for m in unseen if m["provider"] == kind]
        there: set[str] = set()
        asked = [account.view for account in accounts if account.kind == kind]
        try:
            for view in asked:
                there |= view.describe(names).keys()
        except RemudaError as error:
            log.info("machines without a VM cannot be asked for: %s", error)
            continue
        if asked:
            over += [
                m["id"] for m in unseen if m["provider"] == kind and m["provider_id"] not in there
            ]
    runtime.transact(lambda c: models.note_gone(c, over))


def machines_owned(connection: Connection, pool_id: int) -> set[str]:
    """Return the provider's ids of the pool's VMs that are not HALTED."""
    _, vms = models.books(connection, pool_id)
    return {vm["provider_id"] for vm in vms if vm["provider_id"] is not None}


def _elsewhere(runtime: Runtime) -> None:
    """Book the machines of pools that are not ours, or of ours long ended, in the same accounts."""
    asked: list[tuple[str, Mapping[str, Any]]] = []
    for kind, _, settings in runtime.transact(machines.providers_in_use):
        if (kind, settings) in asked:
            continue
        asked.append((kind, settings))
        try:
            provider = provider_for(runtime, kind, settings)
            listed = [vm for vm in provider.list("") if vm.pool and vm.state != "gone"]
        except RemudaError as error:
            log.info("provider %s does not tell of others' machines: %s", kind, error)
            continue
        runtime.transact(lambda c, k=kind, vms=listed: _book_elsewhere(c, k, vms))  # type: ignore[misc]


def _book_elsewhere(connection: Connection, kind: str, listed: Sequence[VmDescription]) -> None:
    by_tag: dict[str, list[VmDescription]] = defaultdict(list)
    for vm in listed:
        by_tag[vm.pool].append(vm)
    ours = models.our_tags(connection, list(by_tag))
    foreign = [
        {"provider_id": vm.provider_id, "tag": tag, "token": vm.token}
        for tag, vms in by_tag.items()
        if tag not in ours
        for vm in vms
    ]
    models.note_unowned(connection, kind, foreign[:MOST_FOREIGN])
    models.forget_foreign(connection, kind)
    for tag, pool_id in ours.items():
        owned = machines_owned(connection, pool_id)
        left = [vm for vm in by_tag[tag] if vm.provider_id not in owned]
        if left and models.is_over(connection, pool_id):
            found = [{"provider_id": v.provider_id, "tag": tag, "token": v.token} for v in left]
            models.note_unowned(connection, kind, found)
