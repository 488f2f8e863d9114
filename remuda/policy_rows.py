"""Policies as they are written and stored: read from mappings, each key checked, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import time
from typing import Any

from remuda.checks import seconds, shown, text_of, whole
from remuda.errors import BadInput
from remuda.policies import DAY_MIN, ElasticSettings, Period, Policy, zone_of

__all__ = ["DAYS", "MAX_PERIODS", "MAX_POLICIES", "own_size", "policies_of", "policy_row"]

MAX_POLICIES = 20
MAX_PERIODS = 50
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MAX_SLOTS = 1_000_000
_YEAR_S = 31_536_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_CLOCK = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])")


def policies_of(value: Any) -> tuple[Policy, ...]:
    """Return the policies that a list of mappings describes; raises BadInput naming the wrong key."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise BadInput(f"policies must be a list of mappings, not {shown(value)}")
    if len(value) > MAX_POLICIES:
        raise BadInput(f"there are {len(value)} policies; at most {MAX_POLICIES} are possible")
    policies = tuple(_policy(each, f"policies[{i}]") for i, each in enumerate(value))
    names: dict[str, int] = {}
    for i, policy in enumerate(policies):
        if policy.name in names:
            raise BadInput(
                f"policies[{i}].name is {policy.name!r} like that of policies[{names[policy.name]}]"
            )
        names[policy.name] = i
        if i and not policies[i - 1].periods:
            raise BadInput(
                f"policies[{i}] would never rule: policies[{i - 1}] is always active",
                hint="the first active one rules; one without periods goes last",
            )
    return policies


def own_size(pool: Mapping[str, Any]) -> ElasticSettings | None:
    """Return how a pool sizes itself where no policy rules; None: it does not. `pool`: its columns."""
    if not pool["is_elastic"]:
        return None
    return ElasticSettings(
        minimum_total_slots=pool["elastic_minimum_slots"],
        maximum_total_slots=pool["elastic_maximum_slots"],
        minimum_idle_slots=pool["elastic_minimum_idle_slots"],
        minimum_idle_time_seconds=pool["elastic_minimum_idle_time_s"],
        resize_factor=pool["elastic_resize_factor"],
        resize_period=pool["elastic_resize_period_s"],
    )


def policy_row(policy: Policy) -> dict[str, Any]:
    """Return a policy as it is written and stored: what is told, nothing else."""
    row: dict[str, Any] = {"name": policy.name, "kind": policy.kind}
    if policy.periods:
        row["time_zone"] = policy.time_zone
        row["periods"] = [
            {
                "days": [DAYS[day] for day in period.days],
                "from": _clock_text(period.from_min),
                "to": _clock_text(period.to_min),
            }
            for period in policy.periods
        ]
    if policy.kind == "fixed":
        row["slots"] = policy.size.maximum_total_slots
    else:
        row |= {item.name: getattr(policy.size, item.name) for item in fields(policy.size)}
    return row


_SIZE_KEYS = tuple(item.name for item in fields(ElasticSettings))
_SLOT_KEYS = ("minimum_total_slots", "maximum_total_slots", "minimum_idle_slots")
_KEYS = {
    "fixed": ("name", "kind", "periods", "time_zone", "slots"),
    "queue": ("name", "kind", "periods", "time_zone", *_SIZE_KEYS),
}


def _policy(value: Any, what: str) -> Policy:
    if isinstance(value, Policy):
        value = policy_row(value)
    if not isinstance(value, Mapping):
        raise BadInput(f"{what} must be a mapping, not {shown(value)}")
    kind = value.get("kind")
    if kind not in ("fixed", "queue"):
        raise BadInput(f"{what}.kind must be fixed or queue, not {shown(kind)}")
    unknown = sorted(str(key) for key in value if key not in _KEYS[kind])
    if unknown:
        raise BadInput(
            f"{what} has no key {', '.join(unknown)[:200]}",
            hint=f"keys of a {kind} policy: {', '.join(_KEYS[kind])}",
        )
    name = value.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput(
            f"{what}.name must be a short name, not {shown(name)}",
            hint="1 to 63 letters, digits, dots, dashes, underscores; a letter or digit first",
        )
    periods = _periods(value.get("periods"), what)
    if "time_zone" in value and not periods:
        raise BadInput(f"{what}.time_zone is for periods, of which it has none")
    zone = text_of(f"{what}.time_zone", value.get("time_zone", "UTC"), least=1, most=64)
    try:
        zone_of(zone)
    except BadInput as error:
        raise BadInput(f"{what}.time_zone: {error.message}", hint=error.hint) from None
    return Policy(name, kind, _size(value, kind, what), periods, zone)


def _size(value: Mapping[str, Any], kind: str, what: str) -> ElasticSettings:
    if kind == "fixed":
        slots = whole(f"{what}.slots", value.get("slots"), least=0, most=_MAX_SLOTS)
        return ElasticSettings(
            minimum_total_slots=slots, maximum_total_slots=slots, resize_period=1
        )
    given = {key: value[key] for key in _SIZE_KEYS if key in value}
    if "maximum_total_slots" not in given:
        raise BadInput(f"{what} needs maximum_total_slots")
    for key in given:
        label = f"{what}.{key}"
        if key in _SLOT_KEYS:
            given[key] = whole(label, given[key], least=0, most=_MAX_SLOTS)
        else:
            most = 1 if key == "resize_factor" else _YEAR_S
            zero = key == "minimum_idle_time_seconds"
            given[key] = seconds(label, given[key], most=most, zero=zero)
    try:
        return ElasticSettings(**given)
    except BadInput as error:
        raise BadInput(f"{what}.{error.message}") from None


def _periods(value: Any, what: str) -> tuple[Period, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence) or not value:
        raise BadInput(
            f"{what}.periods must be a list of at least one period, not {shown(value)}",
            hint="leave it out for a policy that is always active",
        )
    if len(value) > MAX_PERIODS:
        raise BadInput(f"{what} has {len(value)} periods; at most {MAX_PERIODS} are possible")
    periods = tuple(_period(each, f"{what}.periods[{i}]") for i, each in enumerate(value))
    for i, period in enumerate(periods):
        for j, other in enumerate(periods[:i]):
            shared = sorted(set(period.days) & set(other.days))
            if shared and period.from_min < other.to_min and other.from_min < period.to_min:
                raise BadInput(
                    f"{what}.periods[{i}] overlaps {what}.periods[{j}] on {DAYS[shared[0]]}"
                )
    return periods


def _period(value: Any, what: str) -> Period:
    if not isinstance(value, Mapping):
        raise BadInput(f"{what} must be a mapping with days, from and to, not {shown(value)}")
    unknown = sorted(str(key) for key in value if key not in ("days", "from", "to"))
    if unknown:
        raise BadInput(f"{what} has no key {', '.join(unknown)[:200]}", hint="keys: days, from, to")
    begin = _minute(f"{what}.from", value.get("from", "00:00"))
    end = _minute(f"{what}.to", value.get("to", "24:00"))
    if begin >= end:
        raise BadInput(
            f"{what}.to ({_clock_text(end)}) is not after from ({_clock_text(begin)})",
            hint="what goes past midnight is two periods: one to 24:00, one from 00:00",
        )
    return Period(_days(f"{what}.days", value.get("days", DAYS)), begin, end)


def _days(what: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence) or not value:
        raise BadInput(f"{what} must be a list of days of the week, not {shown(value)}")
    found: list[int] = []
    for day in value:
        short = day.strip().lower() if isinstance(day, str) else ""
        number = next(
            (n for n, full in enumerate(DAYS) if len(short) >= 3 and full.startswith(short)), None
        )
        if number is None:
            raise BadInput(f"{what}: {shown(day)} is no day", hint=f"days: {', '.join(DAYS)}")
        if number in found:
            raise BadInput(f"{what} names {DAYS[number]} twice")
        found.append(number)
    return tuple(sorted(found))


def _minute(what: str, value: Any) -> int:
    if isinstance(value, time):  # TOML has times of its own
        value = value.isoformat("minutes") if not value.second else value.isoformat()
    match = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    minute = int(match[1]) * 60 + int(match[2]) if match else DAY_MIN + 1
    if minute > DAY_MIN:
        raise BadInput(f"{what} must be a time of day from 00:00 to 24:00, not {shown(value)}")
    return minute


def _clock_text(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
