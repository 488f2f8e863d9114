"""Which offer is asked, when, and what becomes of a launch that went wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda import errors
from remuda.errors import BadInput
from remuda.offers import Offer, offer_row, offers_for, offers_of
from remuda.workers.launching import Gate, Launch, after_error, held_until, pause_s
from remuda.workers.offers import LONGEST_S, Refusal, choose, refusal_s

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)


def offer(name: str, image: str = "i") -> Offer:
    return Offer(name, "ec2", image)


def refusal(name: str, seconds: float) -> Refusal:
    return Refusal(name, f"none of {name}", NOW + timedelta(seconds=seconds))


class TestChoice:
    def test_the_first_is_asked(self) -> None:
        assert choose([offer("a"), offer("b")], [], NOW).offer == offer("a")

    def test_one_that_was_refused_is_passed_over_until_then(self) -> None:
        offers = [offer("a"), offer("b")]
        choice = choose(offers, [refusal("a", 5)], NOW)
        assert (choice.offer, choice.passed) == (offer("b"), ("offer a: none of a",))
        assert choose(offers, [refusal("a", 5)], NOW + timedelta(seconds=5)).offer == offer("a")

    def test_when_all_were_refused_it_says_when(self) -> None:
        choice = choose([offer("a"), offer("b")], [refusal("a", 9), refusal("b", 5)], NOW)
        assert (choice.offer, choice.at) == (None, NOW + timedelta(seconds=5))
        assert choice.passed == ("offer a: none of a", "offer b: none of b")

    def test_nothing_is_made_of_an_image_in_error(self) -> None:
        broken = {("ec2", "bad"): "it does not boot"}
        offers = [offer("a", "bad"), offer("b", "good")]
        assert choose(offers, [], NOW, broken_images=broken).offer == offers[1]
        choice = choose(offers[:1], [], NOW, broken_images=broken)
        assert (choice.offer, choice.at) == (None, None)
        assert choice.passed == ("offer a: image bad is in ERROR: it does not boot",)

    @given(
        st.lists(st.sampled_from("abcdef"), unique=True),
        st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(-9, 9))),
    )
    def test_what_holds_of_every_choice(
        self, names: list[str], told: list[tuple[str, int]]
    ) -> None:
        refusals = {name: refusal(name, seconds) for name, seconds in told}
        choice = choose([offer(name) for name in names], list(refusals.values()), NOW)
        free = [n for n in names if n not in refusals or refusals[n].expires_at <= NOW]
        assert (choice.offer.name if choice.offer else None) == (free[0] if free else None)
        assert len(choice.passed) == (names.index(free[0]) if free else len(names))
        if names and not free:
            assert choice.at == min(refusals[name].expires_at for name in names)

    def test_the_cheapest_first(self) -> None:
        offers = [Offer("none"), Offer("dear", price=2), Offer("cheap", price=1)]
        assert choose(offers, [], NOW, order="cheapest").offer == offers[2]
        taken = [refusal("cheap", 9)]
        assert choose(offers, taken, NOW, order="cheapest").offer == offers[1]
        taken.append(refusal("dear", 9))
        assert choose(offers, taken, NOW, order="cheapest").offer == offers[0]

    def test_by_deadline_dearer_ones_only_in_need(self) -> None:
        offers = [Offer("dear", price=2), Offer("cheap", price=1)]
        assert choose(offers, [], NOW, order="deadline").offer == offers[1]
        refused = [refusal("cheap", 60)]
        for seconds, expected in ((None, None), (61, None), (60, "dear"), (-5, "dear")):
            late = None if seconds is None else NOW + timedelta(seconds=seconds)
            choice = choose(offers, refused, NOW, order="deadline", deadline=late)
            assert (choice.offer.name if choice.offer else None) == expected
            if expected is None:
                assert choice.at == NOW + timedelta(seconds=60)
                assert "there is time to wait for a cheaper one" in choice.passed[1]
        broken = {("", "bad"): "no"}
        offers[1] = Offer("cheap", image="bad", price=1)
        assert choose(offers, [], NOW, order="deadline", broken_images=broken).offer == offers[0]

    def test_refusals_last_longer_each_time(self) -> None:
        lasts = [refusal_s(times) for times in range(1, 9)]
        assert lasts == [5, 10, 20, 40, 80, 160, 300, 300]
        assert refusal_s(10**9) == LONGEST_S


class TestGate:
    def test_an_open_gate(self) -> None:
        assert held_until(Gate(starting=99), NOW) is None

    @pytest.mark.parametrize(("starting", "held"), [(0, False), (1, False), (2, True), (3, True)])
    def test_so_many_start_at_once(self, starting: int, held: bool) -> None:
        until = held_until(Gate(starting=starting, max_starting=2), NOW)
        assert (until is not None and until > NOW) == held

    def test_so_long_between_spawns(self) -> None:
        gate = Gate(starting=0, spawn_interval_s=10, last_spawn_at=NOW)
        assert held_until(gate, NOW + timedelta(seconds=4)) == NOW + timedelta(seconds=10)
        assert held_until(gate, NOW + timedelta(seconds=10)) is None

    def test_a_paused_pool_asks_for_nothing(self) -> None:
        gate = Gate(starting=0, paused_until=NOW + timedelta(seconds=60))
        assert held_until(gate, NOW) == NOW + timedelta(seconds=60)
        assert held_until(gate, NOW + timedelta(seconds=60)) is None


def launch(failures: int = 0, *, since_s: float = 0.0, booting: bool = False) -> Launch:
    asked = NOW - timedelta(seconds=since_s)
    return Launch(failures=failures, retries=3, asked_at=asked, timeout_s=600, booting=booting)


class TestAfterError:
    @pytest.mark.parametrize(
        ("error", "act"),
        [
            (errors.CapacityError(), "next_offer"),
            (errors.QuotaExceeded(), "next_offer"),
            (errors.ProviderAuthError(), "pause"),
            (errors.PermanentProviderError(), "pause"),
            (errors.BadInput(), "pause"),
            (errors.ImageError(), "break_image"),
            (errors.TransientProviderError(), "retry"),
            (errors.ProviderError(), "retry"),
            (errors.VmUnreachable(), "retry"),
            (errors.PreparationFailed(), "fail"),
            (errors.NoResources(), "fail"),
            (errors.InstanceNotFound(), "fail"),
        ],
    )
    def test_each_error(self, error: Exception, act: str) -> None:
        assert after_error(error, launch(), NOW).act == act
        assert after_error(error, launch(booting=True), NOW).act == act

    def test_the_budget_of_a_step(self) -> None:
        error = errors.TransientProviderError()
        verdicts = [after_error(error, launch(failures), NOW) for failures in range(5)]
        assert [verdict.act for verdict in verdicts] == ["retry"] * 3 + ["fail"] * 2
        assert [verdict.delay_s for verdict in verdicts[:3]] == [2, 4, 8]
        assert verdicts[3].why == "tried 4 times"

    def test_booting_has_no_budget_but_time(self) -> None:
        error = errors.VmUnreachable()
        for failures in range(200):
            verdict = after_error(error, launch(failures, since_s=599, booting=True), NOW)
            assert verdict.act == "retry"
            assert 0 < verdict.delay_s <= 1
        late = after_error(error, launch(200, since_s=600, booting=True), NOW)
        assert (late.act, late.why) == ("fail", "not running 600 s after it was asked for")

    def test_a_host_that_refuses_us_is_not_asked_for_ten_minutes(self) -> None:
        error = errors.AuthError()
        acts = [after_error(error, launch(n, booting=True), NOW).act for n in range(5)]
        assert acts == ["retry"] * 3 + ["fail"] * 2

    def test_pauses_grow(self) -> None:
        assert [pause_s(times) for times in range(1, 7)] == [30, 60, 120, 240, 300, 300]


class TestOffers:
    def test_what_is_left_out_is_the_pools(self) -> None:
        told = [
            {"name": "eu/a", "settings": {"region": "eu"}, "price": 1, "max_price": 2},
            Offer("us", "ec2", "img", {}, None, 0.5),
        ]
        rows = [offer_row(offer) for offer in offers_of(told)]
        assert rows[1] == {"name": "us", "provider": "ec2", "image": "img", "max_price": 0.5}
        pool = {"region": "all", "key": "k"}
        first, second = offers_for(rows, provider="openstack", image="deb", settings=pool)
        assert first == Offer(
            "eu/a", "openstack", "deb", {"region": "eu", "key": "k"}, price=1.0, max_price=2.0
        )
        assert (second.provider, second.image, second.settings) == ("ec2", "img", pool)
        assert offers_for([], provider="p", image="i", settings=pool) == (
            Offer("", "p", "i", pool),
        )

    @pytest.mark.parametrize(
        ("offers", "match"),
        [
            ("a", "must be a list"),
            ({"name": "a"}, "must be a list"),
            (["a"], r"offers\[0\] must be a mapping"),
            ([{}], r"offers\[0\].name"),
            ([{"name": "../x"}], r"offers\[0\].name"),
            ([{"name": "a\0"}], r"offers\[0\].name"),
            ([{"name": "a"}, {"name": "a"}], r"offers\[1\] is called 'a' like offers\[0\]"),
            ([{"name": "a", "region": "eu"}], "has no key region.*under settings"),
            ([{"name": "a", "settings": []}], "settings must be a mapping"),
            ([{"name": "a", "settings": {"x": float("nan")}}], "JSON"),
            ([{"name": "a", "settings": {"x": "\0"}}], "cannot be stored"),
            ([{"name": "a", "settings": {"x": "\ud800"}}], "JSON|stored"),
            ([{"name": "a", "price": -1}], r"offers\[0\].price"),
            ([{"name": "a", "price": True}], r"offers\[0\].price"),
            ([{"name": "a", "price": float("nan")}], r"offers\[0\].price"),
            ([{"name": "a", "price": 3, "max_price": 2}], "above max_price"),
            ([{"name": "a", "image": "x" * 201}], "image"),
            ([{"name": "a", "provider": "No Such"}], "provider"),
            ([{"name": f"n{i}"} for i in range(101)], "at most 100"),
        ],
    )
    def test_bad_input_is_told(self, offers: object, match: str) -> None:
        with pytest.raises(BadInput, match=match):
            offers_of(offers)
