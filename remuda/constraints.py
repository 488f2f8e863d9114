"""What a job may ask of the machine it runs on, beside cores and memory: checked, and matched.

A job's VM has the job's `architecture` and meets all of its `constraints`, a mapping of

    min_cores, max_cores                                    of the machine, not of the job's share
    min_memory_bytes, max_memory_bytes
    min_memory_per_core_bytes, max_memory_per_core_bytes
    min_disk_bytes
    gpu, ssd                                                true: it has one; false: it has none
    cpu_model                                               a pattern: * is any text, ? one letter

They are held against what the VM's runner measured. What was not measured meets no constraint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remuda.checks import shown, text_of, whole
from remuda.errors import BadInput

MAX_TAGS = 100
MAX_TAG_BYTES = 200

_ALIASES = {"amd64": "x86_64", "x64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}
_FLAGS = ("gpu", "ssd")
_BYTES = 1 << 60
# name: (what it is compared with, its words, the unit)
_SIZES = {
    "cores": ("cores", "cores", ""),
    "memory_bytes": ("memory_bytes", "memory", " bytes"),
    "memory_per_core_bytes": ("memory_per_core_bytes", "memory per core", " bytes"),
    "disk_bytes": ("disk_bytes", "disk", " bytes"),
}
_LIMITS = (
    "min_cores",
    "max_cores",
    "min_memory_bytes",
    "max_memory_bytes",
    "min_memory_per_core_bytes",
    "max_memory_per_core_bytes",
    "min_disk_bytes",
)
NAMES = (*_LIMITS, *_FLAGS, "cpu_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a machine is, as it was measured; None: not known."""

    architecture: str | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    gpus: int = 0
    ssd: bool | None = None
    cpu_model: str | None = None

    @property
    def memory_per_core_bytes(self) -> int | None:
        """Return its memory for each of its cores."""
        if self.memory_bytes is None or not self.cores:
            return None
        return self.memory_bytes // self.cores


def architecture_of(value: Any) -> str:
    """Return a machine architecture as `uname -m` tells it, such as x86_64; raises BadInput."""
    name = text_of("architecture", value, least=1, most=50).strip().lower()
    if not re.fullmatch(r"[a-z0-9_.-]+", name):
        raise BadInput(f"{shown(value)} is no architecture", hint="for example x86_64 or aarch64")
    return _ALIASES.get(name, name)


def constraints_of(value: Any) -> dict[str, Any]:
    """Return hardware constraints, checked; raises BadInput naming the wrong one."""
    if not isinstance(value, Mapping):
        raise BadInput(f"constraints must be a mapping, not {shown(value)}")
    unknown = sorted(str(name)[:50] for name in value if name not in NAMES)
    if unknown:
        hint = f"constraints: {', '.join(NAMES)}"
        raise BadInput(f"there is no constraint {', '.join(unknown[:5])}", hint=hint)
    checked: dict[str, Any] = {}
    for name in NAMES:
        if name in value:
            checked[name] = _constraint(name, value[name])
    for size in _SIZES:
        low, high = checked.get(f"min_{size}"), checked.get(f"max_{size}")
        if low is not None and high is not None and low > high:
            raise BadInput(f"min_{size} ({low}) is more than max_{size} ({high})")
    return checked


def _constraint(name: str, value: Any) -> Any:
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise BadInput(f"the constraint {name} must be true or false, not {shown(value)}")
        return value
    if name == "cpu_model":
        return text_of("the constraint cpu_model", value, least=1, most=200)
    most = 100_000 if name.endswith("cores") else _BYTES
    return whole(f"the constraint {name}", value, least=1, most=most)


def hardware_of(row: Mapping[str, Any]) -> Hardware:
    """Return the hardware of a row of `vms` (architecture, slots, memory_bytes, gpus, facts)."""
    facts = row["facts"] or {}
    return Hardware(
        architecture=row["architecture"],
        cores=facts.get("cores") or row["slots"],
        memory_bytes=row["memory_bytes"],
        disk_bytes=facts.get("disk_bytes"),
        gpus=row["gpus"],
        ssd=facts.get("ssd"),
        cpu_model=facts.get("cpu_model"),
    )


def unmet(
    hardware: Hardware, *, architecture: str | None, constraints: Mapping[str, Any] | None
) -> list[str]:
    """Return, in words, what a machine lacks that a job asks for; empty if it will do."""
    lacks = []
    if architecture is not None and architecture != hardware.architecture:
        has = hardware.architecture or "of an unknown one"
        lacks.append(f"it asks for the architecture {architecture}, the machine is {has}")
    for name, wanted in (constraints or {}).items():
        if not _meets(hardware, name, wanted):
            lacks.append(_lack(hardware, name, wanted))
    return lacks


def _meets(hardware: Hardware, name: str, wanted: Any) -> bool:
    if name == "gpu":
        return (hardware.gpus > 0) is bool(wanted)
    if name == "ssd":
        return hardware.ssd is not None and hardware.ssd is bool(wanted)
    if name == "cpu_model":
        model = hardware.cpu_model
        return model is not None and _pattern(wanted).fullmatch(model) is not None
    has = getattr(hardware, name[4:])
    if has is None:
        return False
    return bool(has >= wanted if name.startswith("min_") else has <= wanted)


def _lack(hardware: Hardware, name: str, wanted: Any) -> str:
    if name in _FLAGS:
        what = {"gpu": "GPU", "ssd": "SSD"}[name]
        if name == "ssd" and hardware.ssd is None:
            return f"{name}={wanted} is asked for, it is not known if the machine has an SSD"
        has = "has none" if wanted else "has one"
        return f"it asks for a machine {'with' if wanted else 'without'} a {what}, this one {has}"
    if name == "cpu_model":
        return (
            f"it asks for the CPU {wanted!r}, the machine has {hardware.cpu_model or 'another'!r}"
        )
    field, words, unit = _SIZES[name[4:]]
    has = getattr(hardware, field)
    if has is None:
        return f"it asks for {name}={wanted}, the machine's {words} is not known"
    if name.startswith("min_"):
        asked, differs = f"at least {wanted}", f"{wanted - has}{unit} less"
    else:
        asked, differs = f"at most {wanted}", f"{has - wanted}{unit} more"
    return f"it asks for {words} of {asked}{unit}, the machine has {differs} ({has})"


def _pattern(pattern: str) -> re.Pattern[str]:
    parts = {"*": ".*", "?": "."}
    text = "".join(parts.get(letter, re.escape(letter)) for letter in pattern)
    return re.compile(text, re.IGNORECASE | re.DOTALL)


def tags_of(value: Any) -> tuple[str, ...]:
    """Return tags without repetition, in order; raises BadInput."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise BadInput(f"tags must be a list of words, not {shown(value)}", hint="use [...]")
    tags = tuple(dict.fromkeys(text_of("a tag", tag, least=1, most=MAX_TAG_BYTES) for tag in value))
    if len(tags) > MAX_TAGS:
        raise BadInput(f"there are {len(tags)} tags, at most {MAX_TAGS} are possible")
    return tags
