"""What a job waits for: other jobs, or arrays of them, that end in a certain way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

Afters: TypeAlias = Iterable[Any] | Any


def after_of(value: Any) -> tuple[Any, ...]:
    """Return what a job waits for, checked; raises BadInput."""
    return tuple(value)
