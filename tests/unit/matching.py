"""Requests for leases and VMs, for tests of matching."""

from __future__ import annotations

from typing import Any

from remuda.matching import LeaseSnapshot, LeaseVm, Matching, Request, match

A, B = 1, 2  # pools


def decided(requests: list[Request], vms: list[LeaseVm], **more: Any) -> Matching:
    return match(
        LeaseSnapshot(requests=tuple(requests), vms=tuple(vms), pools={A: "a", B: "b"}, **more)
    )


def granted(found: Matching) -> dict[int, int]:
    return {grant.request_id: grant.vm_id for grant in found.grants}


def wish(number: int, owner: int = 1, **fields: Any) -> Request:
    return Request(**{"id": number, "pool_ids": (A, B), "owner_id": owner, **fields})


def machine(number: int, **fields: Any) -> LeaseVm:
    return LeaseVm(**{"id": number, "pool_id": A, "slots": 1, **fields})
