"""What a pool can be set to: every value is checked here, with a message that names it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from remuda.checks import seconds, shown, text_of, whole
from remuda.client.secret_access import access_of
from remuda.constraints import architecture_of, constraints_of, tags_of
from remuda.errors import BadInput
from remuda.kinds import BACKENDS, PROVIDERS, find_kind
from remuda.models.pool_fields import SETTABLE
from remuda.models.states import NO_BACKEND
from remuda.offers import offer_row, offers_of
from remuda.policy_rows import policies_of, policy_row
from remuda.retries import retry_of, retry_row
from remuda.shelves import TYPES
from remuda.spec import MAX_GPUS, MAX_MEMORY_BYTES, JobSpec
from remuda.timespan import span_of

MAX_SLOTS = 1_000_000
MAX_JOBS = 1_000_000_000
NO_BOUNDS = {  # of a pool that is told nothing of them
    "elastic_minimum_slots": 0,
    "elastic_maximum_slots": 1,
    "elastic_minimum_idle_slots": 0,
}
MAX_LABELS = 100
_YEAR_S = 31_536_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KIND = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Settings that are given with a unit of their own, and where they are kept, in seconds.
_COLUMNS = {"completion_ttl": "completion_ttl_s"}


def pool_name(name: Any) -> str:
    """Return a name a pool can have; raises BadInput."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _UUID.fullmatch(name):
        raise BadInput(
            f"{shown(name)} cannot be the name of a pool",
            hint="1 to 63 letters, digits, dots, dashes, underscores; a letter or digit first;"
            " no UUID",
        )
    return name


def kind(what: str, value: Any) -> str:
    """Return the name of a provider or backend; raises BadInput."""
    if not isinstance(value, str) or not _KIND.fullmatch(value):
        raise BadInput(f"{what} must be a short name such as local, not {shown(value)}")
    return value


def installed(providers: Sequence[str], backend: str) -> None:
    """Refuse a provider or backend that this machine does not have; raises BadInput."""
    backends = [(BACKENDS, backend)] if backend != NO_BACKEND else []
    for group, name in (*((PROVIDERS, provider) for provider in providers), *backends):
        try:
            find_kind(group, name)
        except BadInput as error:
            raise BadInput(
                error.message,
                hint=f"{error.hint}; one that only the workers have installed needs "
                "installed_elsewhere=True (--installed-elsewhere)",
            ) from None


def image_name(value: Any) -> str:
    """Return the name of an image; raises BadInput."""
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise BadInput(f"image must be a name, not {shown(value)}")
    return value


def elastic(
    *,
    minimum_total_slots: Any,
    maximum_total_slots: Any,
    minimum_idle_slots: Any,
    minimum_idle_time_seconds: Any,
    resize_factor: Any,
    resize_period: Any,
) -> dict[str, Any]:
    """Return the columns of an elastic pool; raises BadInput naming the parameter."""
    most = whole("maximum_total_slots", maximum_total_slots, least=1, most=MAX_SLOTS)
    least = whole("minimum_total_slots", minimum_total_slots, least=0, most=MAX_SLOTS)
    idle = whole("minimum_idle_slots", minimum_idle_slots, least=0, most=MAX_SLOTS)
    for name, value in (("minimum_total_slots", least), ("minimum_idle_slots", idle)):
        if value > most:
            raise BadInput(f"{name} ({value}) is above maximum_total_slots ({most})")
    return {
        "is_elastic": True,
        "elastic_minimum_slots": least,
        "elastic_maximum_slots": most,
        "elastic_minimum_idle_slots": idle,
        "elastic_minimum_idle_time_s": seconds(
            "minimum_idle_time_seconds", minimum_idle_time_seconds, most=_YEAR_S, zero=True
        ),
        "elastic_resize_factor": seconds("resize_factor", resize_factor, most=1),
        "elastic_resize_period_s": _period("resize_period", resize_period),
    }


def checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a pool with every value checked; raises BadInput naming the wrong one."""
    unknown = sorted(set(fields) - SETTABLE - set(_COLUMNS))
    if unknown:
        raise BadInput(
            f"a pool has no setting {', '.join(unknown)[:200]}",
            hint=f"settings: {', '.join(sorted(SETTABLE))}",
        )
    return {
        _COLUMNS.get(name, name): _CHECKS[_COLUMNS.get(name, name)](name, value)
        for name, value in fields.items()
    }


def labels_of(what: str, value: Any) -> dict[str, str]:
    """Return labels, keys and values of text; raises BadInput."""
    if not isinstance(value, Mapping):
        raise BadInput(f"{what} must be a mapping of text to text, not {shown(value)}")
    if len(value) > MAX_LABELS:
        raise BadInput(f"{what} has {len(value)} keys, at most {MAX_LABELS} are possible")
    return {
        text_of(f"a key of {what}", key, least=1, most=200): text_of(f"{what}[{shown(key)}]", text)
        for key, text in value.items()
    }


def _shortname(what: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _DNS_LABEL.fullmatch(value) or _UUID.fullmatch(value):
        raise BadInput(
            f"{what} {shown(value)} is no DNS label",
            hint="1 to 63 small letters, digits and dashes, no dash first or last, and no UUID",
        )
    return value


def _constraints(what: str, value: Any) -> dict[str, Any]:
    try:
        return constraints_of({} if value is None else value)
    except BadInput as error:
        raise BadInput(f"{what}: {error.message}", hint=error.hint) from None


def _period(what: str, value: Any) -> float:
    number = seconds(what, value, most=_YEAR_S)
    if number < 1:
        raise BadInput(f"{what} must be at least 1 second, not {shown(value)}")
    return number


def _slots(least: int, most: int) -> Callable[[str, Any], int]:
    return lambda what, value: whole(what, value, least=least, most=most)


def _memory(what: str, value: Any) -> int | None:
    return None if value is None else whole(what, value, least=1, most=MAX_MEMORY_BYTES)


def _short_name(what: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadInput(
            f"{what} must be a short name, not {shown(value)}",
            hint="1 to 63 letters, digits, dots, dashes, underscores; a letter or digit first",
        )
    return value


def check_bounds(fields: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Refuse elastic fields that do not go with each other or the pool's others; raises BadInput."""
    most = fields.get("elastic_maximum_slots", row["elastic_maximum_slots"])
    for name in ("elastic_minimum_slots", "elastic_minimum_idle_slots"):
        value = fields.get(name, row[name])
        if value > most and {name, "elastic_maximum_slots"} & set(fields):
            raise BadInput(f"{name} ({value}) is above elastic_maximum_slots ({most})")


def _flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"{what} must be True or False, not {shown(value)}")
    return value


def _isolation(what: str, value: Any) -> str:
    kinds = ("shared", "owner", "sandbox", "single_use")
    if value not in kinds:
        raise BadInput(f"{what} must be one of {', '.join(kinds)}, not {shown(value)}")
    return str(value)


def _scheduling(what: str, value: Any) -> str:
    """Return the scheduling type in our spelling; Qarnot's (OnDemand) will do."""
    kinds = {name.replace("_", ""): name for name in TYPES}
    word = value.lower().replace("-", "").replace("_", "") if isinstance(value, str) else None
    if word not in kinds:
        raise BadInput(f"{what} must be one of {', '.join(TYPES)}, not {shown(value)}")
    return kinds[word]


def _order(what: str, value: Any) -> str:
    orders = ("listed", "cheapest", "deadline")
    if value not in orders:
        raise BadInput(f"{what} must be one of {', '.join(orders)}, not {shown(value)}")
    return str(value)


def plain_mapping(what: str, value: Any) -> dict[str, Any]:
    """Return a mapping that can be kept as JSON; raises BadInput."""
    if not isinstance(value, Mapping):
        raise BadInput(f"{what} must be a mapping, not {shown(value)}")
    return dict(_plain(what, dict(value)))


def _command(what: str, value: Any) -> list[str] | None:
    """Check a command as that of a job is."""
    if value is None:
        return None
    try:
        return list(_plain(what, list(JobSpec(value).words)))
    except BadInput as error:
        raise BadInput(f"{what}: {error}") from None


def _constants(what: str, value: Any) -> dict[str, str]:
    """Check an environment as that of a job is."""
    try:
        return dict(_plain(what, dict(JobSpec(["x"], environment=value).environment or {})))
    except BadInput as error:
        raise BadInput(f"{what}: {error}") from None


def _words(what: str, value: Any) -> list[str]:
    words = list(value) if isinstance(value, (list, tuple, set, frozenset)) else None
    if words is None or not all(isinstance(word, str) for word in words):
        raise BadInput(f"{what} must be a list of words, not {shown(value)}")
    try:
        return list(tags_of(words))
    except BadInput as error:
        raise BadInput(f"{what}: {error.message}") from None


def _priorities(what: str, value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise BadInput(f"{what} must be a mapping of tags to whole numbers, not {shown(value)}")
    tags = tags_of(list(value))
    return {
        tag: whole(f"{what}[{shown(tag)}]", value[tag], least=-1_000_000, most=1_000_000)
        for tag in tags
    }


def _some_time(what: str, value: Any) -> float | None:
    return None if value is None else seconds(what, value, most=_YEAR_S, zero=True)


def _plain(what: str, value: Any) -> Any:
    try:
        text = json.dumps(value, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise BadInput(f"{what} cannot be kept as JSON: {error}") from None
    if "\\u0000" in text or re.search(r"\\ud[89a-f]", text):
        raise BadInput(f"{what} holds text that cannot be stored")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "name": lambda _, v: pool_name(v),
    "shortname": _shortname,
    "labels": labels_of,
    "constraints": _constraints,
    "completion_ttl_s": lambda what, v: span_of(what, v, most_s=10 * _YEAR_S),
    "auto_delete": _flag,
    "wait_for_resources": _flag,
    "secrets": access_of,
    "profile": lambda what, v: None if v is None else text_of(what, v, least=1, most=63),
    "resources": lambda _, v: v,  # found and stored by who sets them, see pool_resources
    "settings": plain_mapping,
    "tags": _words,
    "isolation": _isolation,
    "scheduling_type": _scheduling,
    "reserved_group": lambda what, v: None if v is None else _short_name(what, v),
    "slots_per_vm": _slots(1, 100_000),
    "memory_bytes_per_vm": _memory,
    "gpus_per_vm": _slots(0, MAX_GPUS),
    "constants": _constants,
    "preparation": _command,
    "preparation_timeout_s": lambda what, v: seconds(what, v, most=86_400),
    "retry": lambda what, v: None if v is None else retry_row(retry_of(v)),
    "instance_count": _slots(0, 100_000),
    "is_elastic": _flag,
    "elastic_minimum_slots": _slots(0, MAX_SLOTS),
    "elastic_maximum_slots": _slots(0, MAX_SLOTS),
    "elastic_minimum_idle_slots": _slots(0, MAX_SLOTS),
    "elastic_minimum_idle_time_s": lambda what, v: seconds(what, v, most=_YEAR_S, zero=True),
    "elastic_resize_factor": lambda what, v: seconds(what, v, most=1),
    "elastic_resize_period_s": _period,
    "policies": lambda _what, v: [policy_row(policy) for policy in policies_of(v)],
    "sizing_group": lambda what, v: None if v is None else _short_name(what, v),
    "datacenter": lambda what, v: None if v is None else _short_name(what, v),
    "heartbeat_s": lambda what, v: seconds(what, v, most=3600),
    "offers": lambda what, v: [offer_row(offer) for offer in offers_of(v)],
    "offer_order": _order,
    "launch_timeout_s": lambda what, v: seconds(what, v, most=86_400),
    "launch_retries": _slots(0, 100),
    "max_starting": lambda what, v: None if v is None else whole(what, v, least=1, most=100_000),
    "spawn_interval_s": lambda what, v: seconds(what, v, most=86_400, zero=True),
    "stalling_interval_s": lambda what, v: seconds(what, v, most=_YEAR_S),
    "architecture": lambda what, v: (
        None if v is None else architecture_of(text_of(what, v, most=50))
    ),
    "check_interval_s": _period,
    "check_timeout_s": lambda what, v: seconds(what, v, most=600),
    "max_check_fails": _slots(0, 1000),
    "min_free_disk_bytes": _slots(0, 1 << 53),
    "health_command": _command,
    "max_vm_age_s": lambda what, v: None if v is None else seconds(what, v, most=10 * _YEAR_S),
    "max_jobs_per_vm": lambda what, v: (
        None if v is None else whole(what, v, least=1, most=MAX_JOBS)
    ),
    "dead_man_s": lambda what, v: None if v is None else _period(what, v),
    "dead_man_command": _command,
    "reboot_command": _command,
    "max_vms_per_owner": lambda what, v: (
        None if v is None else whole(what, v, least=0, most=100_000)
    ),
    "tag_priorities": _priorities,
    "reuse_opportunity_s": _some_time,
    "reuse_max_count": lambda what, v: (
        None if v is None else whole(what, v, least=0, most=2**31 - 1)
    ),
    "reuse_max_s": _some_time,
}
