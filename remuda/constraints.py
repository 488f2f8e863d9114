"""What a job may ask of the machine it runs on, beside cores and memory: checked, and matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remuda.checks import shown, text_of
from remuda.errors import BadInput

MAX_TAGS = 100
MAX_TAG_BYTES = 200


def architecture_of(value: Any) -> str:
    """Return the name of a machine architecture such as x86_64; raises BadInput."""
    return text_of("architecture", value, least=1, most=50)


def constraints_of(value: Any) -> dict[str, Any]:
    """Return hardware constraints, checked; raises BadInput naming the wrong one."""
    if not isinstance(value, Mapping):
        raise BadInput(f"constraints must be a mapping, not {shown(value)}")
    return dict(value)


def tags_of(value: Any) -> tuple[str, ...]:
    """Return tags without repetition, in order; raises BadInput."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise BadInput(f"tags must be a list of words, not {shown(value)}", hint="use [...]")
    tags = tuple(dict.fromkeys(text_of("a tag", tag, least=1, most=MAX_TAG_BYTES) for tag in value))
    if len(tags) > MAX_TAGS:
        raise BadInput(f"there are {len(tags)} tags, at most {MAX_TAGS} are possible")
    return tags
