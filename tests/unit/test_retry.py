"""Retry: own failures as often as asked, losses as often as is reasonable, growing delays."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.errors import BadInput
from remuda.models.states import Reason
from remuda.workers.retry import FINAL, LOST, GiveUp, Outcome, Requeue, RetryPolicy, decide

OWN = sorted({str(reason) for reason in Reason} - FINAL - {LOST})


def test_reasons_are_those_of_the_states() -> None:
    assert {*FINAL, LOST} <= {str(reason) for reason in Reason}


@given(st.sampled_from(OWN), st.integers(1, 20), st.integers(1, 20), st.integers(0, 20))
def test_own_failures_are_tried_as_often_as_asked(
    reason: str, most: int, attempts: int, losses: int
) -> None:
    policy = RetryPolicy(max_attempts=most, max_losses=1)
    found = decide(policy, Outcome(reason=reason, attempts=attempts, losses=losses))
    assert isinstance(found, Requeue) == (attempts < most)
    if isinstance(found, GiveUp):
        assert found.reason == reason


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))
def test_losses_do_not_use_up_attempts(most: int, losses: int, attempts: int) -> None:
    policy = RetryPolicy(max_attempts=1, max_losses=most)
    found = decide(policy, Outcome(reason=LOST, attempts=attempts, losses=losses))
    assert isinstance(found, Requeue) == (losses < most)


@pytest.mark.parametrize("reason", sorted(FINAL))
def test_some_ends_are_final(reason: str) -> None:
    policy = RetryPolicy(max_attempts=9, max_losses=9)
    found = decide(policy, Outcome(reason=reason, attempts=1, losses=1))
    assert found == GiveUp(reason, f"{reason} is final")


def test_delays_double_up_to_the_limit_and_the_first_loss_waits_for_nothing() -> None:
    policy = RetryPolicy(max_attempts=2000, max_losses=2000, delay_s=2, max_delay_s=30)

    def delay_s(reason: str, count: int) -> float:
        found = decide(policy, Outcome(reason=reason, attempts=count, losses=count))
        assert isinstance(found, Requeue)
        return found.delay_s

    counts = (1, 2, 3, 4, 5, 6, 1999)
    assert [delay_s("NONZERO", count) for count in counts] == [2, 4, 8, 16, 30, 30, 30]
    assert [delay_s(LOST, count) for count in counts] == [0, 2, 4, 8, 16, 30, 30]


def test_giving_up_says_why() -> None:
    once = decide(RetryPolicy(), Outcome(reason="NONZERO", attempts=1, losses=0))
    assert once == GiveUp("NONZERO", "failed once, of at most once")
    lost = decide(RetryPolicy(max_losses=3), Outcome(reason=LOST, attempts=0, losses=3))
    assert lost == GiveUp(LOST, "lost 3 times with the VMs it ran on, and given up")


@pytest.mark.parametrize("name", ["max_attempts", "max_losses", "delay_s", "max_delay_s"])
@pytest.mark.parametrize("value", [-1, True, "3", None, math.nan, math.inf])
def test_nonsense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BadInput, match=name):
        RetryPolicy(**{name: value})
