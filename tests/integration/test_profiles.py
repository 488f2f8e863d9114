"""Profiles: templates of pools, checked when stored, and what a pool made from one is."""

from __future__ import annotations

from typing import Any

import pytest

from remuda import AlreadyExists, BadInput, RetryPolicy, UnknownPool
from remuda.errors import SetTooLate, UnknownProfile
from tests.integration.workbench import Workbench

FIELDS: dict[str, Any] = {
    "slots_per_vm": 4,
    "constraints": {"min_cores": 4},
    "constants": {"A": "1"},
    "retry": RetryPolicy(max_retries=2),
    "completion_ttl": "1.00:00:00",
    "offers": [{"name": "spot", "price": 0.5}],
    "is_elastic": True,
    "elastic_maximum_slots": 8,
}


def test_a_pool_is_made_from_a_profile_and_what_is_given_goes_first(bench: Workbench) -> None:
    with bench.client() as client:
        client.create_profile("big", description="for large ones", image="other", **FIELDS)
        pool = client.create_pool("sim", profile="big", constants={"B": "2"}, tags=["x"])
        assert (pool.profile, pool.slots_per_vm, pool.constraints) == ("big", 4, {"min_cores": 4})
        assert (pool.constants, pool.tags) == ({"B": "2"}, ["x"])
        assert (pool.provider, pool.info()["image"], pool.is_elastic) == ("local", "other", True)
        assert pool.retry == RetryPolicy(max_retries=2)
        assert pool.completion_ttl is not None
        assert [offer["name"] for offer in pool.offers] == ["spot"]
        assert client.create_pool("own", profile="big", image="mine").info()["image"] == "mine"
        assert client.create_pool("none").profile is None
        [listed] = client.profiles()
        assert (listed["name"], listed["description"], listed["pools"]) == (
            "big", "for large ones", 2)  # fmt: skip
        client.delete_profile("big")
        assert client.pool("sim").profile == "big"
        with pytest.raises(UnknownProfile):
            client.delete_profile("big")


def test_a_pool_keeps_what_it_was_made_with(bench: Workbench) -> None:
    with bench.client() as client:
        client.create_profile("big", slots_per_vm=4)
        pool = client.create_pool("sim", profile="big")
        with pytest.raises(AlreadyExists, match="big"):
            client.create_profile("big", slots_per_vm=8)
        client.create_profile("big", slots_per_vm=8, replace=True)
        assert client.profile("big")["fields"] == {"slots_per_vm": 8}
        assert pool.update().slots_per_vm == 4


def test_a_profile_is_set_until_submit_and_committed(bench: Workbench) -> None:
    with bench.client() as client:
        client.create_profile("big", slots_per_vm=4, tags=["big"])
        client.create_profile("far", provider="static")
        pool = client.create_pool("sim")
        pool.profile = "big"
        assert (pool.slots_per_vm, pool.tags) == (4, ["big"])
        assert client.pool("sim").slots_per_vm == 1
        with pytest.raises(BadInput, match="provider static"):
            pool.profile = "far"
        with pytest.raises(UnknownProfile, match="nowhere"):
            pool.profile = "nowhere"
        pool.submit()
        assert (client.pool("sim").profile, client.pool("sim").slots_per_vm) == ("big", 4)
        with pytest.raises(SetTooLate, match="profile"):
            pool.profile = "big"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "a b"}, "a b"),
    ({"provider": "No Kind"}, "provider"),
    ({"image": ""}, "image"),
    ({"description": "x" * 10_000}, "description"),
    ({"slots_per_vm": 0}, "slots_per_vm"),
    ({"colour": "red"}, "colour"),
    ({"secrets": {"names": ["A"]}}, "secrets"),
    ({"resources": ["a"]}, "resources"),
    ({"shortname": "a"}, "shortname"),
    ({"completion_ttl": "00:00:00junk"}, "completion_ttl"),
    ({"elastic_minimum_slots": 5, "elastic_maximum_slots": 4}, "elastic_minimum_slots"),
]


def test_a_wrong_profile_is_refused_by_name(bench: Workbench) -> None:
    with bench.client() as client:
        for fields, told in WRONG:
            with pytest.raises(BadInput, match=told):
                client.create_profile(**{"name": "big", **fields})
        assert client.profiles() == []


def test_an_unknown_profile_makes_no_pool(bench: Workbench) -> None:
    with bench.client() as client:
        client.create_profile("big")
        for wrong in ("small", "", "\0", 5):
            with pytest.raises((UnknownProfile, BadInput)):
                client.create_pool("sim", profile=wrong)  # type: ignore[arg-type]
        with pytest.raises(UnknownPool):
            client.pool("sim")
