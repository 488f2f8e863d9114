"""The files of a job: inputs to bring, outputs to bring back, their names checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from remuda.checks import shown, text_of
from remuda.errors import BadInput
from remuda.patterns import ANY_OUTPUT, Pattern, fixed_part, is_pattern

__all__ = ["ANY_OUTPUT", "SCHEMES", "Input", "Inputs", "Output", "Outputs", "PathLike"]

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 2000  # what an index of the database can hold
MAX_COMPONENT_BYTES = 255
SCHEMES = ("file", "http", "https", "s3", "gs", "sftp")  # of the URLs files come from and go to


@dataclass(frozen=True, slots=True)
class Input:
    """Something to bring: `local` here, `name` in the job's directory.

    `local`: a file, relative to the directory of the submit; a pattern (`data/*.csv`, `**` for any
    depth) or a directory: then `name` is a directory, too; or a URL, read when the job starts.
    """

    local: str
    name: str = ""  # empty: as `local`; for a URL, the last part of its path


@dataclass(frozen=True, slots=True)
class Output:
    """Something to bring back: `name` in the job's directory, `local` under its `output_dir`.

    `name`: a file, a pattern, a directory ("out/") or ANY_OUTPUT. `local`: a path, or a URL it is
    put at; of a pattern or a directory, the directory its files go to. The job may succeed without
    an `optional` one.
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


def name_inside(what: str, value: Any, *, hint: str = "", folder: bool = False) -> str:
    """Return a path inside the job's directory, `.` and doubled slashes taken out.

    A `folder` ends with a slash; "./" is the job's directory itself.
    """
    text = text_of(what, path_of(what, value), least=1, most=MAX_NAME_BYTES)
    if text.startswith("/"):
        raise BadInput(f"{what} {shown(text)} must not be absolute", hint=hint)
    if text.endswith("/") and not folder:
        raise BadInput(f"{what} {shown(text)} must be a file, not a directory")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadInput(f"{what} {shown(text)} must not hold '..'", hint=hint)
    if not parts and not folder:
        raise BadInput(f"{what} {shown(text)} names no file")
    for part in parts:
        if len(part.encode()) > MAX_COMPONENT_BYTES:
            raise BadInput(
                f"{what} {shown(text)} has a part of {len(part.encode())} bytes, "
                f"at most {MAX_COMPONENT_BYTES} are possible"
            )
    return "/".join(parts or ["."]) + ("/" if folder else "")


def is_url(text: str) -> bool:
    """Tell a URL from a path."""
    return "://" in text


def checked_url(what: str, url: str) -> str:
    """Return a URL files can come from or go to; raises BadInput, not showing what is secret."""
    text_of(what, url, least=1, most=MAX_PATH_BYTES)
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise BadInput(
            f"{what}: files cannot be staged by {shown(scheme)}", hint=", ".join(SCHEMES)
        )
    place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, host = place.rpartition("@")
    if at and (":" in user or scheme != "sftp"):
        raise BadInput(
            f"{what}: the URL of {scheme}://{host} must not hold credentials",
            hint="put them where the workers run: the environment or configuration of the store",
        )
    if any(char.isspace() or not char.isprintable() for char in url):
        raise BadInput(f"{what} {shown(url)} holds spaces or control characters", hint="%20")
    try:
        parts = urlsplit(url)
        good = (bool(parts.hostname) or scheme == "file") and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise BadInput(f"{what} {shown(url)} is no URL")
    if scheme == "file" and parts.netloc not in ("", "localhost"):
        raise BadInput(f"{what} {shown(url)} names another host", hint="file:///absolute/path")
    return url


def path_of_url(url: str) -> str:
    """Return the path of a `file://` URL."""
    return unquote(urlsplit(url).path)


def _items(what: str, value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.items()
    if value == ANY_OUTPUT and what == "outputs":
        return [value]
    if isinstance(value, (str, bytes, os.PathLike)) or not isinstance(value, Iterable):
        raise BadInput(f"{what} must be a list of files, not {shown(value)}", hint="use [...]")
    return value


def inputs_of(value: Any) -> tuple[Input, ...]:
    """Return inputs as Input objects; nothing is looked for yet. Raises BadInput."""
    found = []
    for item in _items("inputs", value):
        if isinstance(item, Input):
            item = (item.local, item.name) if item.name else (item.local,)
        if not isinstance(item, tuple):
            item = (item,)
        if not 1 <= len(item) <= 2:
            raise BadInput(f"an input is a name or a (local, name) pair, not {item!r:.80}")
        found.append(_input(*item))
    _distinct("input", [file.name for file in found if not _many(file.local, file.name)])
    return tuple(found)


def _input(local: Any, name: Any = None) -> Input:
    path = local_path("an input's local path" if name is not None else "input", local)
    if is_url(path):
        checked_url("input", path)
        if not path.startswith("file:"):
            return _remote(path, name)
        path = path_of_url(path)
        name = os.path.basename(path) if name is None else name
    hint = (
        "give its name in the job, too: a pair (local path, name), or NAME=PATH at the command line"
    )
    if name is None:
        if not is_pattern(path):
            return Input(path, name_inside("input", path, hint=hint))
        name_inside("input", path, hint=hint, folder=True)
        return Input(path, name_inside("input", fixed_part(path) or "./", folder=True))
    many = _many(path, path_of("input", name))
    return Input(path, name_inside("input", name, folder=many))


def _remote(url: str, name: Any) -> Input:
    base = unquote(urlsplit(url).path).rpartition("/")[2]
    if not base or (is_pattern(base) and not url.startswith("http")):
        raise BadInput(f"input {shown(url)} names no file", hint="a URL is one file's")
    if name is None:
        return Input(url, name_inside("input", base))
    if path_of("input", name).endswith("/"):
        return Input(url, name_inside("input", name, folder=True) + name_inside("input", base))
    return Input(url, name_inside("input", name))


def _many(local: str, name: str) -> bool:
    return name == "." or name.endswith("/") or (is_pattern(local) and not is_url(local))


def outputs_of(value: Any) -> tuple[Output, ...]:
    """Return outputs as Output objects; raises BadInput."""
    found = []
    for item in _items("outputs", value):
        optional = False
        if isinstance(item, Output):
            optional = item.optional
            item = (item.name, item.local) if item.local else item.name
        if not isinstance(item, tuple):
            item = (item, None)
        if len(item) != 2:
            raise BadInput(f"an output is a name or a (name, local) pair, not {item!r:.80}")
        found.append(_output(*item, optional=optional))
    _distinct("output", [file.name for file in found if not is_pattern(file.name)])
    here = [file.local for file in found if not is_url(file.local)]
    _distinct("local path of an output", [to for to in here if to and not _many("", to)])
    return tuple(found)


def _output(name: Any, local: Any, *, optional: bool) -> Output:
    text = path_of("output", name)
    many = is_pattern(text)
    checked = name_inside("output", text, folder=text.endswith("/"))
    if checked == "./":
        checked = ANY_OUTPUT
    if local is None:
        return Output(checked, "" if many else checked, optional)
    what = "local path of an output"
    to = local_path(what, local)
    if is_url(to):
        to = checked_url("destination of an output", to)
        to += "/" if many and not to.endswith("/") else ""
    else:
        hint = "file:// names a place of its own, apart from output_dir"
        to = name_inside(what, to, hint=hint, folder=many or to.endswith("/"))
    if to.endswith("/") and not many:
        to += checked.rpartition("/")[2]
    return Output(checked, to.removeprefix("./") if not many else to, optional)


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


def output_row(file: Output) -> dict[str, Any]:
    """Return an output as a row of the job's spec keeps it."""
    row: dict[str, Any] = {"name": file.name, "optional": file.optional}
    if file.local.startswith("file:"):  # a place of the submitter's, as an input's is
        end = "/" if file.local.endswith("/") else ""
        row["local"] = os.path.normpath(path_of_url(file.local)) + end
    elif is_url(file.local):
        row["url"] = file.local
    elif file.local not in ("", file.name):
        row["local"] = file.local
    return row


def destination(name: str, outputs: Iterable[Mapping[str, Any]]) -> str | None:
    """Return where a file goes that a job left: a path under `output_dir`, an absolute one, a URL.

    `outputs`: rows of its spec, filled in. Its own row counts before a pattern, else the first that
    matches. None: nobody asked for it.
    """
    for output in outputs:
        if output["name"] == name:
            return str(output.get("url") or output.get("local") or name)
    for output in outputs:
        if is_pattern(output["name"]) and _pattern(output["name"]).matches(name):
            to = output.get("url") or output.get("local")
            rest = name[len(fixed_part(output["name"])) :]
            return f"{to}{rest}".removeprefix("./") if to else name
    return None


@lru_cache(maxsize=256)
def _pattern(text: str) -> Pattern:
    return Pattern(text)


def filler(index: int | str | None, params: Mapping[str, str] | None) -> Callable[[str], str]:
    """Return what fills `{index}` and the `{names}` of a row of parameters into a text.

    One pass: what was filled in is not looked at again.
    """
    values = {**(params or {}), **({} if index is None else {"index": str(index)})}
    if not values:
        return lambda text: text
    pattern = re.compile("|".join(re.escape(f"{{{name}}}") for name in values))
    return lambda text: pattern.sub(lambda found: values[found[0][1:-1]], text)
