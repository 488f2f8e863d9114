"""How many examples Hypothesis tries: fewer where only the version of Python is another."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100  # Hypothesis's own default


def examples(count: int) -> int:
    """Return so many, or as much fewer as the profile in use has fewer than usual."""
    tried = settings.default.max_examples if settings.default else _USUAL
    return max(1, count * min(tried, _USUAL) // _USUAL)
