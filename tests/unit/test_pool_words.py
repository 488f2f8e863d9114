"""What `pool explain` says is grammatical for one of a thing, and for more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from remuda.client.pool_words import explain_pool


def pool(number: int) -> dict[str, Any]:
    """Return the row of a static pool with this number of everything."""
    counts = ("vms", "slots", "busy_slots", "waiting_jobs", "live_jobs", "instance_count")
    return {
        **dict.fromkeys((*counts, "slots_per_vm", "short_slots", "launch_failures"), number),
        "state": "SUBMITTED",
        "is_elastic": False,
        "decision": None,
        "short_since": datetime(2026, 3, 1, 10, tzinfo=UTC),
        "message": "no such image",
    }


@pytest.mark.parametrize(
    ("number", "sentences"),
    [
        (
            1,
            [
                "It is SUBMITTED, with 1 VM (1 slot ready, 1 busy); 1 job waits, 1 is on the way.",
                "Static: 1 VM of 1 slot.",
                "Its work needs 1 slot that only others",
                "1 launch failed: no such image",
            ],
        ),
        (
            2,
            [
                "It is SUBMITTED, with 2 VMs (2 slots ready, 2 busy); 2 jobs wait, 2 are on the way.",
                "Static: 2 VMs of 2 slots.",
                "Its work needs 2 slots that only others",
                "2 launches failed in a row: no such image",
            ],
        ),
    ],
)
def test_one_and_more_are_told_apart(number: int, sentences: list[str]) -> None:
    said = explain_pool(pool(number))
    for sentence in sentences:
        assert [line for line in said if line.startswith(sentence)], said
