"""What a pool of the `command` provider is told: its hooks, their time-outs, what they are run with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remuda.checks import seconds, shown, text_of
from remuda.errors import BadInput
from remuda.hosts import host_of

__all__ = ["CALLS", "HookSettings", "hooks_of"]

CALLS = {"new": 600.0, "delete": 120.0, "livecheck": 30.0, "release": 120.0, "list": 60.0}
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_OURS = ("REMUDA_", "RESALLOC_")
_MOST_BYTES = 16_384
_LOGIN = ("port", "user", "key_file", "host_key", "known_hosts", "jump")

Command = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HookSettings:
    """A pool's hooks: a line for `sh -c`, or words. `timeouts_s`: what each may take.

    `counters`: names of which each VM holds the smallest free number, over all pools. `environment`:
    variables of every hook. `login`: what is the same for logging in to all of its VMs.
    """

    commands: Mapping[str, Command]
    timeouts_s: Mapping[str, float] = field(default_factory=lambda: dict(CALLS))
    counters: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    login: Mapping[str, Any] = field(default_factory=dict)


def hooks_of(settings: Mapping[str, Any]) -> HookSettings:
    """Return the hooks of a pool's settings; raises BadInput naming the wrong key."""
    known = [f"cmd_{call}" for call in CALLS] + [f"{call}_timeout_s" for call in CALLS]
    known += ["named_counters", "environment", "ssh"]
    unknown = sorted(str(key) for key in settings if key not in known)
    if unknown:
        raise BadInput(
            f"the command provider has no setting {', '.join(unknown)[:200]}",
            hint=f"settings: {', '.join(known)}",
        )
    for needed in ("cmd_new", "cmd_delete"):
        if not settings.get(needed):
            raise BadInput(
                f"{needed} is missing", hint='cmd_new="/usr/local/bin/new-vm" cmd_delete="..."'
            )
    commands = {
        call: _command(f"cmd_{call}", settings[f"cmd_{call}"])
        for call in CALLS
        if settings.get(f"cmd_{call}")
    }
    return HookSettings(
        commands=commands,
        timeouts_s={
            call: seconds(
                f"{call}_timeout_s", settings.get(f"{call}_timeout_s", usual), most=86_400
            )
            for call, usual in CALLS.items()
        },
        counters=_counters(settings.get("named_counters")),
        environment=_environment(settings.get("environment")),
        login=_login(settings.get("ssh")),
    )


def _command(what: str, value: Any) -> Command:
    if isinstance(value, str):
        return text_of(what, value, least=1, most=_MOST_BYTES)
    if isinstance(value, (list, tuple)) and value:
        return tuple(
            text_of(f"{what}[{i}]", word, most=_MOST_BYTES) for i, word in enumerate(value)
        )
    raise BadInput(f"{what} must be a line for the shell or a list of words, not {shown(value)}")


def _counters(value: Any) -> tuple[str, ...]:
    names = value if isinstance(value, (list, tuple)) else () if value is None else None
    if names is None or not all(isinstance(n, str) and _WORD.fullmatch(n) for n in names):
        raise BadInput(f"named_counters must be a list of plain words, not {shown(value)}")
    if len(set(names)) != len(names):
        raise BadInput("named_counters has a name twice")
    return tuple(names)


def _environment(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(f"environment must be a mapping, not {shown(value)}")
    for name in value:
        if not isinstance(name, str) or not _WORD.fullmatch(name) or name.startswith(_OURS):
            raise BadInput(f"environment cannot have a variable {shown(name)}")
    return {
        name: text_of(f"environment.{name}", text, most=_MOST_BYTES) for name, text in value.items()
    }


def _login(value: Any) -> dict[str, Any]:
    """Check what the addresses of all VMs have in common; the address itself is the hook's to tell."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or set(value) - set(_LOGIN):
        raise BadInput(
            f"ssh must be a mapping with {', '.join(_LOGIN)}", hint='ssh={"user": "root"}'
        )
    host_of({**value, "address": "vm"}, what="ssh")
    return dict(value)
