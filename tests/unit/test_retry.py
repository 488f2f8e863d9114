"""Retry: own failures as often as asked, by cause, losses as often as is reasonable, growing delays."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.errors import BadInput
from remuda.models.states import Reason
from remuda.retries import CAUSES, RetryPolicy, RetryRule, policy_from_row, retry_of, retry_row
from remuda.workers.retry import FINAL, LOST, Failure, GiveUp, Outcome, Requeue, decide


def outcome(reason: str, *, failures: int = 1, losses: int = 0, **more: Any) -> Outcome:
    last = Failure(
        reason=reason, exit_code=more.pop("exit_code", None), signal=more.pop("sig", None)
    )
    return Outcome(last=last, failures=failures, losses=losses, **more)


def test_every_reason_is_final_or_lost_or_a_cause() -> None:
    always_again = Reason.PREEMPTED  # nobody's fault: it is not even decided about
    assert {*FINAL, LOST, *CAUSES, str(always_again)} == {str(reason) for reason in Reason}


@given(st.sampled_from(CAUSES), st.integers(0, 20), st.integers(1, 21), st.integers(0, 20))
def test_own_failures_are_tried_as_often_as_asked(
    reason: str, most: int, failures: int, losses: int
) -> None:
    policy = RetryPolicy(max_retries=most, max_losses=1)
    found = decide(policy, outcome(reason, failures=failures, losses=losses))
    assert isinstance(found, Requeue) == (failures <= most)
    if isinstance(found, GiveUp):
        assert found.reason == reason


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))
def test_losses_do_not_use_up_retries(most: int, losses: int, failures: int) -> None:
    policy = RetryPolicy(max_losses=most)
    found = decide(policy, outcome(LOST, failures=failures, losses=losses))
    assert isinstance(found, Requeue) == (losses < most)


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 100))
def test_what_was_not_heard_to_begin_counts_a_quarter(most: int, losses: int, unheard: int) -> None:
    policy = RetryPolicy(max_losses=most)
    found = decide(policy, outcome(LOST, failures=0, losses=losses, unheard=unheard))
    assert isinstance(found, Requeue) == (losses + unheard // 4 < most)


@pytest.mark.parametrize("reason", sorted(FINAL))
def test_some_ends_are_final(reason: str) -> None:
    found = decide(RetryPolicy(max_retries=9, max_losses=9), outcome(reason))
    assert found == GiveUp(reason, f"{reason} is final")


def test_delays_grow_up_to_the_limit_and_the_first_loss_waits_for_nothing() -> None:
    policy = RetryPolicy(max_retries=999, max_losses=999, delay_s=2, max_delay_s=30, jitter=0)

    def delay_s(reason: str, count: int) -> float:
        found = decide(policy, outcome(reason, failures=count, losses=count))
        assert isinstance(found, Requeue)
        return found.delay_s

    counts = (1, 2, 3, 4, 5, 6, 998)
    assert [delay_s("NONZERO", count) for count in counts] == [2, 4, 8, 16, 30, 30, 30]
    assert [delay_s(LOST, count) for count in counts] == [0, 2, 4, 8, 16, 30, 30]


@given(st.integers(0, 10**9), st.floats(0, 1))
def test_jitter_adds_at_most_its_part_and_is_the_same_for_the_same_seed(
    seed: int, jitter: float
) -> None:
    policy = RetryPolicy(max_retries=5, delay_s=10, jitter=jitter)
    found = decide(policy, outcome("NONZERO", seed=seed))
    assert isinstance(found, Requeue)
    assert 10 <= found.delay_s <= 10 * (1 + jitter)
    assert found == decide(policy, outcome("NONZERO", seed=seed))


def test_jitter_spreads_jobs() -> None:
    policy = RetryPolicy(max_retries=5, delay_s=10, jitter=1)
    found = [decide(policy, outcome("NONZERO", seed=seed)) for seed in range(100)]
    delays = [one.delay_s for one in found if isinstance(one, Requeue)]
    assert len(delays) == 100
    assert max(delays) - min(delays) > 5


def test_the_first_rule_that_matches_counts() -> None:
    policy = RetryPolicy(
        max_retries=3,
        jitter=0,
        rules=[
            RetryRule(exit_codes=[2], max_retries=0),
            RetryRule(exit_codes=[2, 75], delay_s=7),
            {"signals": ["TERM"], "max_retries": 1},
            {"reasons": ["WALLTIME"], "max_retries": 0},
        ],
    )
    never = decide(policy, outcome("NONZERO", exit_code=2))
    assert never == GiveUp("NONZERO", "failed once, of at most once in this way")
    assert decide(policy, outcome("NONZERO", exit_code=75)) == Requeue(7.0)
    assert decide(policy, outcome("NONZERO", exit_code=1)) == Requeue(1.0)
    assert isinstance(decide(policy, outcome("WALLTIME")), GiveUp)
    once = Failure(reason="SIGNALLED", signal=15)
    other = Failure(reason="NONZERO", exit_code=1)
    twice = outcome("SIGNALLED", sig=15, failures=2, earlier=[once])
    assert isinstance(decide(policy, twice), GiveUp)
    mixed = outcome("SIGNALLED", sig=15, failures=2, earlier=[other])
    assert isinstance(decide(policy, mixed), Requeue)
    # A rule's limit is beside the policy's own.
    assert isinstance(decide(policy, outcome("NONZERO", exit_code=75, failures=4)), GiveUp)


def test_the_retries_of_an_array_are_counted_together() -> None:
    policy = RetryPolicy(max_retries=3, max_total_retries=10)
    assert isinstance(decide(policy, outcome("NONZERO", array_retries=9)), Requeue)
    over = decide(policy, outcome("NONZERO", array_retries=10))
    assert over == GiveUp("NONZERO", "the 10 retries of all jobs of its array are used up")


def test_after_running_out_of_memory_it_gets_more() -> None:
    policy = RetryPolicy(max_retries=9, jitter=0, max_memory_bytes=1000)

    def memory(had: int | None, most: int | None) -> Any:
        found = decide(policy, outcome("OUT_OF_MEMORY", memory_bytes=had, most_memory_bytes=most))
        return found.memory_bytes if isinstance(found, Requeue) else found.message

    assert memory(100, None) == 200
    assert memory(100, 150) == 150
    assert memory(800, 4000) == 1000
    assert memory(1000, 4000) == "1000 bytes of memory were too little, and more cannot be had"
    assert memory(None, 4000) is None
    same = RetryPolicy(max_retries=1, memory_factor=1)
    assert isinstance(decide(same, outcome("OUT_OF_MEMORY", memory_bytes=5)), Requeue)


def test_giving_up_says_why() -> None:
    once = decide(RetryPolicy(), outcome("NONZERO"))
    assert once == GiveUp("NONZERO", "failed once, of at most once")
    lost = decide(RetryPolicy(max_losses=3), outcome(LOST, failures=0, losses=3))
    assert lost == GiveUp(LOST, "lost 3 times with the VMs it ran on, and given up")
    lost = decide(RetryPolicy(max_losses=3), outcome(LOST, failures=0, losses=1, unheard=9))
    assert isinstance(lost, GiveUp)
    told = "lost once with the VMs it ran on, 9 times with VMs it had been sent to, and given up"
    assert lost.message == told


@pytest.mark.parametrize(
    "name",
    ["max_retries", "max_losses", "delay_s", "max_delay_s", "factor", "jitter", "memory_factor"],
)
@pytest.mark.parametrize("value", [-1, True, "3", None, math.nan, math.inf, 10**30])
def test_nonsense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BadInput, match=name):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"reasons": "NONZERO"},
        {"reasons": ["LOST"]},
        {"reasons": ["OK"]},
        {"exit_codes": [256]},
        {"exit_codes": 3},
        {"signals": ["SIGNONE"]},
        {"signals": [0]},
        {"exit_codes": [1], "delay_s": -1},
        {"exit_codes": [1], "max_retries": 1000},
        {"exit_codes": [1], "colour": "red"},
        "NONZERO",
        3,
    ],
)
def test_rules_that_make_no_sense_are_refused(rule: Any) -> None:
    with pytest.raises(BadInput):
        RetryPolicy(rules=[rule])


def test_a_policy_survives_its_row() -> None:
    policy = RetryPolicy(max_retries=2, rules=[RetryRule(signals=["KILL"], delay_s=3)])
    row = retry_row(policy)
    assert row is not None
    assert retry_of(row) == policy
    assert policy_from_row(row, max_attempts=1) == policy
    assert policy_from_row(None, max_attempts=4).max_retries == 3
    assert retry_row(None) is None
    with pytest.raises(BadInput, match="colour"):
        retry_of({"colour": 1})
