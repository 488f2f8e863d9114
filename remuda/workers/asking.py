"""Questions to a host over SSH, answered by `remuda.workers.onvm.host`, which is sent along.

Nothing but a login shell, `/bin/sh` and python3 is relied on. Every answer is found by its mark,
so whatever the login shell prints does no harm; nothing that is asked stands in an argument list.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from remuda.errors import BackendError
from remuda.hosts import Host
from remuda.workers.onvm import host as asked
from remuda.workers.session import NO_PYTHON, Session
from remuda.workers.transport import connections

__all__ = ["PYTHON", "Question", "asking", "call", "running"]

PYTHON = "python3 -I -S -X utf8"  # a fast start, and file names as they are
_CHECK = "import sys; sys.version_info < (3, 7) and sys.exit(46)"
_FREE = f"{asked.MARK}{json.dumps({'claim': None})}"
# Looks at a claimed host without python3, which takes most of the time of a look; what is odd is
# left to `do_look`.
_GLANCE = (
    "cd; c= s=; if [ -s {place}/claim ] && cd -- {place}; then b=$(pwd -P); read -r c < claim; "
    'for f in vm-*/runner.json vm-*/stopped; do [ -e "$f" ] && s="$s $f"; done; '
    'case "$b$s" in *[!A-Za-z0-9/._\\ -]*) ;; *) case "$c" in "{{"*"}}") '
    f'printf \'\\n%s{{{{"claim":%s,"base":"%s","files":"%s"}}}}\\n\' {asked.MARK} '
    '"$c" "$b" "$s"; exit 0;; esac;; esac; cd; fi; '
)
_UNFIT = f"{asked.MARK}{json.dumps({'claim': None, 'python': False})}"


class Question:
    """What was asked, while it is being answered: `session` may be written to and read from."""

    def __init__(self, session: Session) -> None:
        """Hear what comes over the session."""
        self.session = session

    def answer(self) -> dict[str, Any]:
        """Return the next answer; BackendError if the host cannot do it."""
        line = self.session.until(asked.MARK)
        try:
            answer = json.loads(line[len(asked.MARK) :])
        except ValueError as error:
            raise BackendError(f"host {self.session.host.name} says {line!r:.200}") from error
        if not isinstance(answer, dict):
            raise BackendError(f"host {self.session.host.name} gave no answer")
        if "error" in answer:
            raise BackendError(f"host {self.session.host.name}: {answer['error']}")
        return answer


@contextmanager
def asking(
    host: Host,
    do: str,
    *,
    place: str,
    timeout_s: float,
    lasting: bool = False,
    window_bytes: int | None = None,
    **fields: Any,
) -> Iterator[Question]:
    """Ask the host to `do` something.

    It has `timeout_s`; if it is `lasting`, for each piece that goes back or forth. Raises
    VmUnreachable or AuthError if the host cannot be asked, NoResources if it has no python3.
    """
    source = _source()
    code = f"{_CHECK}; exec(sys.stdin.buffer.read({len(source)}))"
    script = f"if command -v python3 >/dev/null 2>&1; then {PYTHON} -c {shlex.quote(code)}; "
    script += "[ $? = 46 ] || exit 0; fi; "
    if do == "look":  # a host without python3 that nobody has claimed is free, if unfit
        fit = (
            f"{PYTHON} -c {shlex.quote(_CHECK)} 2>/dev/null && {{ echo; echo '{_FREE}'; exit 0; }}"
        )
        glance = _GLANCE.format(place=shlex.quote(place))
        script = f"{glance}[ -e {shlex.quote(place)}/claim ] || {{ {fit}; }}; {script}"
        free = f"[ -e {shlex.quote(place)}/claim ]"
        script += f"{free} || {{ echo; echo {shlex.quote(_UNFIT)}; exit 43; }}; "
    script += f" echo; echo {NO_PYTHON}"
    with running(host, script, timeout_s, lasting=lasting, window_bytes=window_bytes) as session:
        session.write(source + json.dumps({"do": do, "place": place, **fields}).encode() + b"\n")
        yield Question(session)


def call(host: Host, do: str, *, place: str, timeout_s: float, **fields: Any) -> dict[str, Any]:
    """Ask, and return the one answer; raises as `asking` does, BackendError if it cannot do it."""
    with asking(host, do, place=place, timeout_s=timeout_s, **fields) as question:
        answer = question.answer()
    return _seen(answer) if "base" in answer else answer


def _seen(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what `do_look` would have said of what was glanced at."""
    home = asked.home_of(answer["base"], answer["claim"]["token"])
    files = answer["files"].split()
    state = "pending"
    for name, meaning in (("runner.json", "running"), ("stopped", "stopped")):
        if f"{home.rpartition('/')[2]}/{name}" in files:
            state = meaning
    return {"claim": answer["claim"], "home": home, "state": state}


@contextmanager
def running(
    host: Host,
    script: str,
    timeout_s: float,
    *,
    lasting: bool = False,
    window_bytes: int | None = None,
) -> Iterator[Session]:
    """Give a session in which `/bin/sh` runs the script."""
    with connections().session(host, timeout_s=timeout_s, window_bytes=window_bytes) as channel:
        session = Session(host, channel)
        with session.limited(timeout_s, lasting=lasting):
            session.execute(script)
            yield session


@lru_cache(maxsize=1)
def _source() -> bytes:
    return Path(asked.__file__).read_bytes()
