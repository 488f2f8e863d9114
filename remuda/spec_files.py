"""The files of a job: inputs to bring, outputs to bring back, their names checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from remuda.checks import shown, text_of
from remuda.errors import BadInput

MAX_PATH_BYTES = 4096
MAX_COMPONENT_BYTES = 255


@dataclass(frozen=True, slots=True)
class Input:
    """A file to bring: `local` here, relative to the directory of the submit; `name` there."""

    local: str
    name: str


@dataclass(frozen=True, slots=True)
class Output:
    """A file to bring back: `name` in the job's directory, `local` under its `output_dir`.

    The job may succeed without an `optional` one.
    """

    name: str
    local: str = ""  # empty: as `name`
    optional: bool = False


PathLike: TypeAlias = str | os.PathLike[str]
Inputs: TypeAlias = Iterable[PathLike | Input | tuple[PathLike, str]] | Mapping[str, str]
Outputs: TypeAlias = Iterable[PathLike | Output | tuple[str, PathLike]] | Mapping[str, str]


def path_of(what: str, value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise BadInput(f"{what} must be a path, not {shown(value)}")
    return value


def local_path(what: str, value: Any) -> str:
    return text_of(what, path_of(what, value), least=1, most=MAX_PATH_BYTES)


def name_inside(what: str, value: Any, *, hint: str = "") -> str:
    """Return a path inside the job's directory, `.` and doubled slashes taken out."""
    text = text_of(what, path_of(what, value), least=1, most=MAX_PATH_BYTES)
    if text.startswith("/"):
        raise BadInput(f"{what} {shown(text)} must not be absolute", hint=hint)
    if text.endswith("/"):
        raise BadInput(f"{what} {shown(text)} must be a file, not a directory")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadInput(f"{what} {shown(text)} must not hold '..'", hint=hint)
    if not parts:
        raise BadInput(f"{what} {shown(text)} names no file")
    for part in parts:
        if len(part.encode()) > MAX_COMPONENT_BYTES:
            raise BadInput(
                f"{what} {shown(text)} has a part of {len(part.encode())} bytes, "
                f"at most {MAX_COMPONENT_BYTES} are possible"
            )
    return "/".join(parts)


def _items(what: str, value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, (str, bytes, os.PathLike)) or not isinstance(value, Iterable):
        raise BadInput(f"{what} must be a list of files, not {shown(value)}", hint="use [...]")
    return value


def inputs_of(value: Any) -> tuple[Input, ...]:
    found = []
    for item in _items("inputs", value):
        if isinstance(item, Input):
            item = (item.local, item.name)
        if isinstance(item, tuple):
            if len(item) != 2:
                raise BadInput(f"an input is a name or a (local, name) pair, not {item!r:.80}")
            found.append(
                Input(local_path("an input's local path", item[0]), name_inside("input", item[1]))
            )
        else:
            hint = "give a pair (local path, name in the job)"
            found.append(Input(path_of("input", item), name_inside("input", item, hint=hint)))
    _distinct("input", [file.name for file in found])
    return tuple(found)


def outputs_of(value: Any) -> tuple[Output, ...]:
    found = []
    for item in _items("outputs", value):
        optional = False
        if isinstance(item, Output):
            optional = item.optional
            item = (item.name, item.local) if item.local else item.name
        if isinstance(item, tuple):
            if len(item) != 2:
                raise BadInput(f"an output is a name or a (name, local) pair, not {item!r:.80}")
            file = Output(name_inside("output", item[0]), name_inside("output", item[1]), optional)
        else:
            name = name_inside("output", item)
            file = Output(name, name, optional)
        if "*" in file.name:
            raise BadInput(
                f"output {shown(file.name)}: patterns are not possible",
                hint="name each file, or pack them into one",
            )
        found.append(file)
    _distinct("output", [file.name for file in found])
    _distinct("local path of an output", [file.local for file in found])
    return tuple(found)


def _distinct(what: str, names: list[str]) -> None:
    """Refuse a name twice, and one that is a directory of another."""
    seen = set(names)
    if len(seen) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise BadInput(f"{what} {shown(twice)} is there twice")
    for name in names:
        above = name
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in seen:
                raise BadInput(f"{what} {shown(above)} cannot be a file and hold {shown(name)}")
