"""The books' decisions: what is missing, what is nobody's, what is believed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from remuda.workers.ledger import MASS, Machine, VmRow, compare, judge

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STATES = (
    "NEW", "SUBMITTED", "WAIT_SSH_CONTEXT", "CONTEXTUALIZING", "RUNNING", "STALLED", "STOPPING",
    "ERROR",
)  # fmt: skip
NAMES = st.sampled_from([f"m{n}" for n in range(8)])
TOKENS = st.sampled_from([f"t{n}" for n in range(8)])


@st.composite
def rows(draw: st.DrawFn) -> list[VmRow]:
    made = []
    names = draw(st.lists(NAMES, unique=True, max_size=6))
    for number, name in enumerate(names):
        state = draw(st.sampled_from(STATES))
        known = state not in ("NEW", "STOPPING", "ERROR") or draw(st.booleans())
        since = NOW - timedelta(seconds=draw(st.integers(0, 200)))
        made.append(VmRow(number, state, name if known else None, f"t{number}", since))
    return made


MACHINES = st.lists(
    st.builds(Machine, NAMES, TOKENS), unique_by=lambda machine: machine.provider_id, max_size=8
)


@given(rows(), MACHINES)
def test_nothing_is_both_owned_and_unowned(vms: list[VmRow], machines: list[Machine]) -> None:
    found = compare(vms, machines, NOW)
    ids = {vm.provider_id for vm in vms if vm.provider_id}
    waiting = {vm.token for vm in vms if vm.provider_id is None}
    for machine in machines:
        owned = machine.provider_id in ids or machine.token in waiting
        assert (machine in found.unowned) != owned


@given(rows(), MACHINES)
def test_what_is_listed_is_never_missing(vms: list[VmRow], machines: list[Machine]) -> None:
    listed = {machine.provider_id for machine in machines}
    for vm in compare(vms, machines, NOW).missing:
        assert vm.provider_id is not None
        assert vm.provider_id not in listed
        assert vm.state not in ("NEW", "STOPPING", "ERROR")
        assert vm.state != "SUBMITTED" or NOW - vm.since >= timedelta(seconds=60)


@given(rows(), MACHINES)
def test_a_complete_list_has_no_differences(vms: list[VmRow], machines: list[Machine]) -> None:
    del machines
    there = [Machine(vm.provider_id, vm.token) for vm in vms if vm.provider_id]
    found = compare(vms, there, NOW)
    assert (found.missing, found.unowned) == ((), ())


def test_a_notice_is_told_once() -> None:
    soon = NOW + timedelta(minutes=2)
    [vm, known] = [
        VmRow(1, "RUNNING", "a", "t1", NOW),
        VmRow(2, "RUNNING", "b", "t2", NOW, interruption_at=soon),
    ]
    there = [Machine("a", "t1", soon), Machine("b", "t2", soon), Machine("c", "t3", soon)]
    assert compare([vm, known], there, NOW).interrupted == {1: soon}


@given(
    st.integers(0, 30),
    st.integers(0, 30),
    st.one_of(st.none(), st.integers(0, 1000)),
    st.booleans(),
)
def test_only_a_few_are_believed_on_first_sight(
    gone: int, others: int, frozen_s: int | None, confirmed: bool
) -> None:
    live = gone + others
    verdict = judge(
        gone=range(gone),
        live=live,
        now=NOW,
        frozen_at=None if frozen_s is None else NOW - timedelta(seconds=frozen_s),
        confirmed=confirmed and frozen_s is not None,
        grace_s=300,
    )
    most = gone >= MASS and gone > live / 2
    if not most or (confirmed and frozen_s is not None):
        assert verdict.what == "BELIEVE"
    elif frozen_s is None:
        assert verdict.what == "FREEZE"
        assert f"{gone} of {live}" in verdict.reason
    else:
        assert verdict.what == ("BELIEVE" if frozen_s >= 300 else "WAIT")
