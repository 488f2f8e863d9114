"""Checks of what users give: each returns the value, or raises BadInput naming what is wrong."""

from __future__ import annotations

from typing import Any

from remuda.errors import BadInput

MAX_TEXT_BYTES = 500


def whole(what: str, value: Any, *, least: int, most: int) -> int:
    """Return `value` as an int; raises BadInput naming `what` unless it is one in the range."""
    if type(value) is int and least <= value <= most:
        return value
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        number = int(value.__index__())
        if least <= number <= most:
            return number
    raise BadInput(f"{what} must be a whole number from {least} to {most}, not {shown(value)}")


def seconds(what: str, value: Any, *, most: float, zero: bool = False) -> float:
    """Return `value`, more than 0 (or 0 if `zero`) and at most `most`; else raises BadInput."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
    if 0 < number <= most or (zero and number == 0):
        return float(number)
    least = "at least 0" if zero else "more than 0"
    raise BadInput(f"{what} must be a number, {least} and at most {most:.0f}, not {shown(value)}")


def shown(value: object) -> str:
    """Return `value` for an error message, never long."""
    if not isinstance(value, (str, bytes, int, float, type(None))):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and abs(value) > 10**60:
        return "a number of more than 60 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def text_if(what: str, value: Any) -> str | None:
    """Return None as it is, all else as `text_of` does: of what may be left out, such as filters."""
    return None if value is None else text_of(what, value)


def text_of(what: str, value: Any, *, least: int = 0, most: int = MAX_TEXT_BYTES) -> str:
    """Return text of `least` to `most` bytes in UTF-8, without NUL; else raises BadInput."""
    if type(value) is not str and not isinstance(value, str):
        raise BadInput(f"{what} must be text, not {shown(value)}")
    if value.isascii():
        size = len(value)
    else:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise BadInput(f"{what} is not valid UTF-8: {shown(value)}") from None
    if "\0" in value:
        raise BadInput(f"{what} must not hold a NUL character: {shown(value)}")
    if not least <= size <= most:
        wrong = "is empty" if not size else f"has {size} bytes, at most {most} are possible"
        raise BadInput(f"{what} {wrong}")
    return str(value)
