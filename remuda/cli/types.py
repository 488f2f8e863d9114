"""What can be written on the command line: sizes, durations, names of states, ids, NAME=VALUE."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

JOB_STATES = ("NEW", "SUBMITTED", "RUNNING", "STOPPED", "UNKNOWN", "TERMINATING", "TERMINATED")
LIVE_JOB_STATES = JOB_STATES[:-1]
VM_STATES = (
    "NEW",
    "SUBMITTED",
    "WAIT_SSH_CONTEXT",
    "CONTEXTUALIZING",
    "RUNNING",
    "STALLED",
    "STOPPING",
    "ERROR",
    "HALTED",
)
ISOLATIONS = ("shared", "owner", "sandbox", "single_use")

MAX_DURATION_S = 315_360_000.0  # ten years
MAX_IDS = 1_000_000

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(?:([KMGTP])(i?B)?|B)?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])", re.IGNORECASE | re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_IDS = re.compile(r"(\d{1,18})(?:\.\.(\d{1,18}))?", re.ASCII)
_INDICES = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    from remuda.retries import RetryPolicy

    _ParamType = click.ParamType[Any, Any]
else:  # not generic before click 8.4
    _ParamType = click.ParamType


class Size(_ParamType):
    """Bytes: `512M`, `2G`, `1T`; K, M, G are powers of 1024 (as KiB), KB, MB, GB of 1000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            self.fail(f"{_shown(value)} is not a size; write it as 512M, 2G or 1T", param, ctx)
        number, prefix, unit = match.groups()
        base = 1000 if (unit or "").upper() == "B" else 1024
        exponent = " KMGTP".index(prefix.upper()) if prefix else 0
        size = float(number) * float(base) ** exponent
        if not 1 <= size < 2**63:
            self.fail(f"{_shown(value)} is out of range", param, ctx)
        return round(size)


class Duration(_ParamType):
    """Seconds: `90s`, `10m`, `1h30m`, `2d`; a bare number is seconds."""

    name = "duration"

    def __init__(self, *, zero: bool = False) -> None:
        """Accept 0 only with `zero`."""
        self.zero = zero

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number of seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        text = value.strip()
        seconds = math.nan
        if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
            seconds = float(text)
        elif re.fullmatch(f"({_DURATION.pattern})+", text, re.IGNORECASE | re.ASCII):
            parts = [(float(n), unit.lower()) for n, unit in _DURATION.findall(text)]
            sizes = [_SECONDS[unit] for _, unit in parts]
            if sizes == sorted(set(sizes), reverse=True):
                seconds = sum(number * _SECONDS[unit] for number, unit in parts)
        if math.isnan(seconds):
            self.fail(f"{_shown(value)} {self.complaint(text)}", param, ctx)
        if seconds > MAX_DURATION_S or (seconds == 0 and not self.zero):
            self.fail(f"{_shown(value)} is out of range", param, ctx)
        return seconds

    def complaint(self, text: str) -> str:
        """Return what is wrong with text that cannot be read."""
        return "is not a duration; write it as 90s, 10m, 1h30m or 2d"


class Span(Duration):
    """Seconds: a duration, or `d.hh:mm:ss`; 0: none."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number of seconds."""
        if isinstance(value, str) and ":" in value:
            from remuda.errors import BadInput
            from remuda.timespan import span_of

            try:
                return span_of("it", value, most_s=MAX_DURATION_S) or 0.0
            except BadInput:
                message = "is neither d.hh:mm:ss or hh:mm:ss nor a duration such as 10m or 1h30m"
                self.fail(f"{_shown(value)} {message}", param, ctx)
        return super().convert(value, param, ctx)


class JobIds(_ParamType):
    """A job's id, or a range of them as `job submit` prints it: `101..200`."""

    name = "id"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the ids, at least one."""
        if isinstance(value, tuple):
            return value
        match = _IDS.fullmatch(value.strip())
        if match is None:
            self.fail(f"{_shown(value)} is not a job's id (a number, or 101..200)", param, ctx)
        first = int(match[1])
        last = int(match[2] or first)
        if not first <= last < first + MAX_IDS:
            self.fail(f"{_shown(value)} is an empty range, or too long", param, ctx)
        return tuple(range(first, last + 1))


class Indices(_ParamType):
    """The indices of an array: a count (`100`: 0 to 99), or `0-99`, `1-10:3`, `3,5,8`."""

    name = "count|indices"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | list[int]:
        """Return a count, or the list of indices in the order given."""
        if isinstance(value, (int, list)):
            return value
        text = value.strip()
        if text.isascii() and text.isdigit():
            count = int(text)
            if not 1 <= count <= MAX_IDS:
                self.fail(f"an array has 1 to {MAX_IDS} jobs, not {_shown(text)}", param, ctx)
            return count
        found: list[int] = []
        for part in text.rstrip(",").split(","):
            match = _INDICES.fullmatch(part.strip())
            if match is None:
                what = _shown(text.rstrip(","))
                message = f"{what} is neither a count nor indices like 0-99, 1-10:3, 3,5,8"
                self.fail(message, param, ctx)
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            if last < first or step < 1 or len(found) + (last - first) // step >= MAX_IDS:
                self.fail(f"{_shown(part)} is an empty range, or too long", param, ctx)
            found.extend(range(first, last + 1, step))
        if len(set(found)) != len(found):
            self.fail(f"{_shown(value)} names an index twice", param, ctx)
        return found


class IndexList(Indices):
    """Some indices of an array: `7`, `0-99`, `1-10:3`, `3,5,8`; here a number is an index."""

    name = "indices"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """Return the indices in the order given."""
        if isinstance(value, list):
            return value
        found = super().convert(f"{str(value).strip().rstrip(',')},", param, ctx)
        return found if isinstance(found, list) else [found]


class ArrayPart(_ParamType):
    """An array, `12`, or some of its indices, `12:0-49`."""

    name = "array[:indices]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, list[int] | None]:
        """Return the array's id, and the indices or None."""
        if isinstance(value, tuple):
            return value
        number, colon, indices = str(value).strip().partition(":")
        if not (number.isascii() and number.isdigit() and len(number) < 19 and int(number)):
            self.fail(f"{_shown(value)} is not an array's id, or ID:INDICES", param, ctx)
        return int(number), IndexList().convert(indices, param, ctx) if colon else None


class Assignment(_ParamType):
    """`NAME=VALUE`; with `from_environment` a bare `NAME` takes the caller's own value."""

    name = "name=value"

    def __init__(self, *, from_environment: bool = False) -> None:
        """See the class."""
        self.from_environment = from_environment

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the pair."""
        if isinstance(value, tuple):
            return value
        name, equals, given = value.partition("=")
        if not name or (not equals and not self.from_environment):
            self.fail(f"{_shown(value)} is not NAME=VALUE", param, ctx)
        if not equals:
            if name not in os.environ:
                self.fail(f"{_shown(name)} is not set in the environment", param, ctx)
            given = os.environ[name]
        return name, given


class Input(_ParamType):
    """An input: `PATH`, kept under its own name, or `NAME=PATH`: then it is called NAME.

    PATH: a file, a directory, a pattern or a URL.
    """

    name = "[name=]path"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | tuple[str, str]:
        """Return the path, or the pair of name and path."""
        if isinstance(value, tuple):
            return value
        name, equals, path = value.partition("=")
        if not equals or "://" in name or os.path.exists(value):
            return str(value)
        if not name or not path:
            self.fail(f"{_shown(value)} is neither PATH nor NAME=PATH", param, ctx)
        return name, path


def inputs_of(given: Sequence[str | tuple[str, str]]) -> list[str | tuple[str, str]]:
    """Return inputs as specs have them: their pairs are (here, there), the options' "there=here"."""
    return [item if isinstance(item, str) else (item[1], item[0]) for item in given]


class Output(_ParamType):
    """An output: `NAME`, or `NAME=PLACE`: then that is where it goes, under the output folder."""

    name = "name[=place]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | tuple[str, str]:
        """Return the name, or the pair of name and place."""
        if isinstance(value, tuple):
            return value
        name, equals, place = value.partition("=")
        if not equals:
            return str(value)
        if not name or not place:
            self.fail(f"{_shown(value)} is neither NAME nor NAME=PLACE", param, ctx)
        return name, place


class JsonValue(_ParamType):
    """`KEY=VALUE` where VALUE is JSON if it can be read so (8, true, [1]), else text."""

    name = "key=json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Return the pair."""
        if isinstance(value, tuple):
            return value
        key, equals, given = value.partition("=")
        if not key or not equals:
            self.fail(f"{_shown(value)} is not KEY=VALUE", param, ctx)
        import json

        try:
            return key, json.loads(given)
        except ValueError:
            return key, given


class Policy(_ParamType):
    """A retry policy: a JSON file of its fields, or the JSON object itself; read and checked."""

    name = "file|json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> RetryPolicy:
        """Return the policy."""
        from remuda.errors import BadInput
        from remuda.retries import RetryPolicy, retry_of

        if isinstance(value, RetryPolicy):
            return value
        inline = str(value).lstrip().startswith("{")
        what = "" if inline else f"{_shown(value)}: "
        try:
            if inline:
                text = str(value)
            else:
                with open(value, encoding="utf-8") as file:
                    text = file.read()
            return retry_of(json_of(text))
        except OSError as error:
            self.fail(f"{what}{error.strerror or error}", param, ctx)
        except BadInput as error:
            hint = f" ({error.hint})" if error.hint else ""
            self.fail(f"{what}{error.message}{hint}", param, ctx)
        except (ValueError, RecursionError) as error:
            self.fail(f"{what}it is not JSON: {error}", param, ctx)


def json_of(text: str) -> Any:
    """Return what JSON text says; raises ValueError, also for a key that is there twice."""
    import json

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1)
            raise ValueError(f"{_shown(twice)} is there twice")
        return found

    return json.loads(text, object_pairs_hook=unique)


def json_option(function: F) -> F:
    """Add `--json`: machine-readable output, the same from release to release."""
    option = click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead.")
    return option(function)


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


SIZE = Size()
DURATION = Duration()
DURATION_OR_ZERO = Duration(zero=True)
SPAN = Span(zero=True)
JOB_IDS = JobIds()
