"""Which VMs go: never too many at a time, the interrupted ones at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.workers import health
from remuda.workers.fitness import Measured, Promised, shortfall
from remuda.workers.retiring import Rules, VmAge, retire

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STATES = st.sampled_from(
    ["NEW", "SUBMITTED", "WAIT_SSH_CONTEXT", "CONTEXTUALIZING", "RUNNING", "STALLED", "STOPPING"]
)
VMS = st.lists(
    st.builds(
        VmAge,
        id=st.integers(1, 1000),
        state=STATES,
        draining=st.booleans(),
        busy=st.booleans(),
        outdated=st.booleans(),
        age_s=st.floats(0, 10_000),
        interruption_at=st.one_of(
            st.none(), st.integers(-300, 300).map(lambda s: NOW + timedelta(seconds=s))
        ),
    ),
    unique_by=lambda vm: vm.id,
    max_size=12,
)


@given(VMS, st.floats(1, 9000))
def test_age_never_takes_more_than_half(vms: list[VmAge], limit: float) -> None:
    found = retire(vms, Rules(max_vm_age_s=limit), NOW)
    running = [vm for vm in vms if vm.state == "RUNNING"]
    aged = [i for i, why in found.drain.items() if "older" in why]
    going = [vm for vm in running if vm.draining or vm.id in found.drain]
    assert not aged or len(going) <= max(1, len(running) // 2)
    assert all(vm.age_s >= limit for vm in vms if vm.id in aged)


@given(VMS, st.integers(1, 5), st.one_of(st.none(), st.integers(0, 15)))
def test_a_rollout_keeps_its_bound(vms: list[VmAge], most: int, wanted: int | None) -> None:
    found = retire(vms, Rules(max_unavailable=most, wanted=wanted), NOW)
    by_id = {vm.id: vm for vm in vms}
    rolled = [by_id[i] for i, why in found.drain.items() if "image" in why]
    assert all(vm.outdated and not vm.draining for vm in rolled)
    there = [vm for vm in vms if vm.state != "STOPPING"]
    left = [
        vm for vm in there if vm.state == "RUNNING" and not vm.draining and vm.id not in found.drain
    ]
    target = len(there) if wanted is None else wanted
    if any(vm.state == "RUNNING" for vm in rolled):
        assert target - len(left) <= most
    assert found.rolled_out == (not any(vm.outdated for vm in there))


@given(VMS)
def test_interruptions_wait_for_nothing(vms: list[VmAge]) -> None:
    found = retire(vms, Rules(), NOW)
    for vm in vms:
        if vm.state == "STOPPING" or vm.interruption_at is None:
            assert vm.id not in found.over
        else:
            assert (vm.id in found.over) == (vm.interruption_at <= NOW)
            assert (vm.id in found.drain) == (vm.interruption_at > NOW and not vm.draining)


@given(
    st.lists(
        st.builds(health.Checked, st.integers(1, 99), st.integers(1, 9), st.booleans()),
        unique_by=lambda vm: vm.id,
    ),
    st.integers(0, 40),
    st.integers(0, 10),
)
def test_no_more_than_half_is_condemned(
    unfit: list[health.Checked], more: int, draining: int
) -> None:
    running = len(unfit) + more + draining
    found = health.condemn(unfit, running=running, draining=draining)
    going = len(found.terminate) + len(found.drain)
    assert going == 0 or going + draining <= max(1, running // 2)
    assert going + found.spared == len(unfit)
    assert all(
        vm.busy == (vm.id in found.drain)
        for vm in unfit
        if vm.id in (*found.terminate, *found.drain)
    )


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (None, None),
        ({"st": 0, "out": "fine"}, None),
        ({"st": 2, "out": "one\ntwo\n"}, "the health command ended with exit code 2: two"),
        ({"st": None, "sig": 9, "out": ""}, "the health command was ended by signal 9"),
        ({"st": None, "sig": 9, "timed_out": True}, "the health command took too long"),
    ],
)
def test_what_a_check_says(command: dict[str, object] | None, told: str | None) -> None:
    assert health.problem({"disk_free": 10}, command=command) == told
    low = health.problem({"disk_free": 10}, min_free_disk_bytes=11, command=command)
    assert low == "10 bytes of disk are free, at least 11 must be"


@pytest.mark.parametrize(
    ("measured", "wrong"),
    [
        (Measured(4, 8 << 30, "x86_64"), None),
        (Measured(4, int(7.3 * (1 << 30)), "x86_64"), None),  # what the kernel keeps
        (Measured(4, 7 << 30, "x86_64"), "bytes of memory, not"),
        (Measured(3, 8 << 30, "x86_64"), "it has 3 cores, not the 4 its provider says"),
        (Measured(9, 3 << 30, "x86_64"), "not the 4294967296 its pool asks"),
        (Measured(4, 8 << 30, "aarch64"), "its architecture is aarch64, not x86_64"),
        (Measured(None, None, "x86_64"), None),
    ],
)
def test_less_than_promised(measured: Measured, wrong: str | None) -> None:
    promised = Promised(4, 8 << 30, least_memory_bytes=4 << 30, architecture="x86_64")
    found = shortfall(promised, measured)
    assert found is None if wrong is None else wrong in str(found)
    part = Promised(99, 1 << 50, least_memory_bytes=1 << 50, whole=False)
    assert shortfall(part, measured) is None  # others share the machine
    assert shortfall(Promised(), measured) is None  # nothing is said, slots are no promise


def test_of_a_small_machine_its_kernel_keeps_more_than_a_tenth() -> None:
    """192 MiB told, 100 MiB measured: nothing is wrong with it."""
    told = Promised(1, 192 << 20)
    assert shortfall(told, Measured(1, 100 << 20, "x86_64")) is None
    assert shortfall(told, Measured(1, 63 << 20, "x86_64")) is not None
