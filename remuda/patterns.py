"""Names of many files: wildcards and whole directories, matched and walked without surprises.

    *  ?  [abc]  [!a-z]     within one part of a name; a leading dot must be written out
    **                      any number of parts, none of them hidden
    d/                      everything below d, hidden files too;  ANY_OUTPUT ("**" alone): all

Runs on the VMs too: Python 3.7, standard library only.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any, Callable, Iterator, Union

ANY_OUTPUT = "**"
_DEEP, _ALL = "**", "/"  # parts of a pattern: any depth, hidden or not
_WILD = re.compile(r"[*?[]")
_CLASS = re.compile(r"\[!?\]?[^\]]*\]")

_Token = Union[str, "re.Pattern[str]", None]  # a character, a set of them, any one


def is_pattern(name: str) -> bool:
    """Tell whether a name stands for many files."""
    return name.endswith("/") or _WILD.search(name) is not None


def fixed_part(pattern: str) -> str:
    """Return the directory that all matches are in, "" or ending with a slash."""
    if pattern.endswith("/") and not _WILD.search(pattern):
        return pattern
    parts = pattern.rstrip("/").split("/")[: None if pattern.endswith("/") else -1]
    fixed = []
    for part in parts:
        if _WILD.search(part):
            break
        fixed.append(part)
    return "".join(part + "/" for part in fixed)


class Pattern:
    """A pattern of relative names, in linear time whatever it is."""

    def __init__(self, text: str) -> None:
        """Take any text: what is no wildcard stands for itself."""
        parts = [part for part in text.split("/") if part not in ("", ".")]
        again = zip(["", *parts], parts)
        parts = [part for before, part in again if part != _DEEP or before != _DEEP]
        if text == ANY_OUTPUT:
            parts = [_ALL]
        elif text.endswith("/"):
            parts.append(_ALL)
        elif parts and parts[-1] == _DEEP:
            parts.append("*")
        self.parts: list[Any] = [
            part if part in (_DEEP, _ALL) else (part[0], _tokens(part)) for part in parts
        ]

    def matches(self, name: str) -> bool:
        """Tell whether a file's name is meant."""
        parts = name.split("/")
        end = len(self.parts)
        states = self._after(parts)
        return end in states or (self.parts[-1:] == [_ALL] and end - 1 in self._after(parts[:-1]))

    def within(self, folder: str) -> bool:
        """Tell whether something below a directory may be meant."""
        states = self._after(folder.split("/") if folder else [])
        return any(state < len(self.parts) for state in states)

    def _after(self, parts: list[str]) -> set[int]:
        """Return how far in the pattern one can be once these parts are matched."""
        states = self._closed({0})
        for part in parts:
            after = set()
            for state in states:
                if state == len(self.parts):
                    continue
                wanted = self.parts[state]
                if wanted == _ALL or (wanted == _DEEP and not part.startswith(".")):
                    after.add(state)
                elif wanted not in (_ALL, _DEEP) and _fits(wanted, part):
                    after.add(state + 1)
            states = self._closed(after)
        return states

    def _closed(self, states: set[int]) -> set[int]:
        for state in sorted(states):
            while state < len(self.parts) and self.parts[state] == _DEEP:
                state += 1
                states.add(state)
        return states


def _tokens(part: str) -> list[tuple[bool, _Token]]:
    """Return what a part of a pattern wants: (may be repeated, what)."""
    found: list[tuple[bool, _Token]] = []
    at = 0
    while at < len(part):
        text = part[at]
        some = _CLASS.match(part, at) if text == "[" else None
        if some:
            found.append((False, _class(some.group())))
            at = some.end()
            continue
        if text == "*":
            if not found or not found[-1][0]:
                found.append((True, None))
        else:
            found.append((False, None if text == "?" else text))
        at += 1
    return found


def _class(text: str) -> _Token:
    inner = text[1:-1]
    inverse = inner.startswith("!")
    members = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner[1:] if inverse else inner)
    try:
        return re.compile("[{}{}]".format("^" if inverse else "", members), re.DOTALL)
    except re.error:  # a range that ends before it begins holds nothing
        return re.compile(r"(?!)")


def _fits(wanted: tuple[str, list[tuple[bool, _Token]]], part: str) -> bool:
    first, tokens = wanted
    if part.startswith(".") and first != ".":
        return False
    at = token = 0
    star, resume = -1, 0
    while at < len(part):
        if token < len(tokens) and tokens[token][0]:
            star, resume = token, at
            token += 1
        elif token < len(tokens) and _is(tokens[token][1], part[at]):
            token, at = token + 1, at + 1
        elif star >= 0:
            resume += 1
            token, at = star + 1, resume
        else:
            return False
    return all(repeated for repeated, _ in tokens[token:])


def _is(wanted: _Token, char: str) -> bool:
    if wanted is None:
        return True
    return wanted == char if isinstance(wanted, str) else wanted.match(char) is not None


class TooMany(Exception):
    """There is more than can be looked at."""


class Found:
    """What a walk came upon: a file, or with `status` None what cannot be taken for one."""

    __slots__ = ("folder", "name", "path", "problem", "status")

    def __init__(
        self,
        name: str,
        path: str,
        status: os.stat_result | None,
        *,
        problem: str = "",
        folder: bool = False,
    ) -> None:
        """`name`: relative to the root. `problem`: why not. `folder`: it cannot be searched."""
        self.name, self.path, self.status = name, path, status
        self.problem, self.folder = problem, folder


def walk(root: str, enter: Callable[[str], bool], *, most: int) -> Iterator[Found]:
    """Yield what is below a directory, in order of names; only directories that `enter` wants.

    A link counts as what it points to, if that is below the root too; one to a directory around it
    is left out, so nothing loops. Raises TooMany when it has seen more than `most` of either.
    """
    root = os.path.realpath(root)
    pending: list[Any] = [("", root, (root,))]  # name, path, the real directories around it
    files = folders = 0
    while pending:
        folder, path, around = pending.pop()
        folders += 1
        if folders > most:
            raise TooMany
        try:
            with os.scandir(path) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            yield Found(folder, path, None, problem=error.strerror or str(error), folder=True)
            continue
        below = []
        for base in names:
            name = folder + "/" + base if folder else base
            at = path + "/" + base
            found = _look(root, name, at)
            if found.status is not None and stat.S_ISDIR(found.status.st_mode):
                real = os.path.realpath(at)
                if real not in around and enter(name):
                    below.append((name, at, (*around, real)))
                continue
            files += 1
            if files > most:
                raise TooMany
            yield found
        pending += reversed(below)


def _look(root: str, name: str, path: str) -> Found:
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            real = os.path.realpath(path)
            if not real.startswith(root.rstrip("/") + "/") and real != root:
                return Found(name, path, None, problem="a link that leads out")
            status = os.stat(path)
    except OSError as error:
        return Found(name, path, None, problem=error.strerror or str(error))
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        return Found(name, path, status)
    return Found(name, path, None, problem="no regular file")
