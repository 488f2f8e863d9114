"""Outputs past their limit: what was written where, and what is left of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["marker", "place_of"]


def marker(count: int) -> bytes:
    """Return what stands for `count` bytes that were cut out."""
    return b"\n[remuda: %d bytes were cut out here]\n" % count


def place_of(row: Mapping[str, Any], offset: int) -> tuple[int, int, int]:
    """Return where an output that is kept goes on from the byte `offset` of what was written.

    `row`: of `outputs.stored`. The three are the byte itself, later than `offset` if what is
    between was cut out; its place in what is kept; and how many bytes follow without a gap.
    """
    size, begin, end = row["size"], row["cut_from"], row["cut_to"]
    if begin is None:
        return offset, offset, max(0, size - offset)
    if offset < begin:
        return offset, offset, begin - offset
    at = max(offset, end)
    place = size - row["written_bytes"] + at
    return at, place, max(0, size - place)
