"""How often, and after which pauses, a job is tried again: policy as data, checked when it is made.

A job has two counts. Its own failures (an exit code, a signal, a limit, a missing file) are tried
again as often as its policy says. Losses (its VM or its runner died under it) are not its fault and
are made good besides, but not for ever: a job may itself kill its VMs.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from remuda.checks import seconds, shown, whole
from remuda.errors import BadInput

__all__ = ["RetryPolicy", "RetryRule", "policy_from_row", "retry_of", "retry_row"]

MAX_RETRIES = 999
MAX_RULES = 50
MAX_DELAY_S = 31_536_000.0
MAX_MEMORY_BYTES = 1 << 53
CAUSES = ("NONZERO", "SIGNALLED", "WALLTIME", "OUT_OF_MEMORY", "STAGING", "SUBMISSION")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """What to do after failures of one kind; what is None is as the policy says.

    It is for failures with one of the `reasons` (names of `remuda.models.states.Reason`), the
    `exit_codes` or the `signals` (numbers, or names such as "SIGKILL"); at least one is given.
    `max_retries` counts failures of this kind alone, beside the policy's own limit.
    """

    reasons: Sequence[str] = ()
    exit_codes: Sequence[int] = ()
    signals: Sequence[int | str] = ()
    max_retries: int | None = None
    delay_s: float | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "reasons", tuple(_reason(item) for item in _items("reasons", self.reasons)))
        codes = _items("exit_codes", self.exit_codes)
        put(
            self,
            "exit_codes",
            tuple(whole("an exit code", item, least=0, most=255) for item in codes),
        )
        put(self, "signals", tuple(_signal(item) for item in _items("signals", self.signals)))
        if not (self.reasons or self.exit_codes or self.signals):
            raise BadInput("a retry rule needs reasons, exit_codes or signals it is for")
        if self.max_retries is not None:
            put(self, "max_retries", _count("max_retries", self.max_retries))
        if self.delay_s is not None:
            put(self, "delay_s", _delay("delay_s", self.delay_s))

    def matches(self, reason: str, exit_code: int | None, signal_number: int | None) -> bool:
        """Return whether a failure is of this kind."""
        return (
            reason in self.reasons
            or (exit_code is not None and exit_code in self.exit_codes)
            or (signal_number is not None and signal_number in self.signals)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Whether and when a failed job is tried again.

    `max_retries`: tries after the first, per job. `max_total_retries`: of all jobs of an array
        together; None: no such limit.
    `delay_s`: the pause before the first retry, then `factor` times as long each time, at most
        `max_delay_s`; up to the part `jitter` (0 to 1) of it is added, so that many don't come at once.
    `memory_factor`: after OUT_OF_MEMORY it is given this many times the memory, at most
        `max_memory_bytes` and what its pool's VMs have; with all of that it is not tried again.
    `max_losses`: VMs it may take with it before it is stopped.
    `rules`: exceptions by cause; the first that matches counts.
    """

    max_retries: int = 0
    max_total_retries: int | None = None
    delay_s: float = 1.0
    factor: float = 2.0
    max_delay_s: float = 60.0
    jitter: float = 0.1
    memory_factor: float = 2.0
    max_memory_bytes: int | None = None
    max_losses: int = 5
    rules: Sequence[RetryRule | Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "max_retries", _count("max_retries", self.max_retries))
        if self.max_total_retries is not None:
            most = 10_000_000
            total = whole("max_total_retries", self.max_total_retries, least=0, most=most)
            put(self, "max_total_retries", total)
        for name in ("delay_s", "max_delay_s"):
            put(self, name, _delay(name, getattr(self, name)))
        put(self, "factor", _number("factor", self.factor, least=1, most=1000))
        put(self, "jitter", _number("jitter", self.jitter, least=0, most=1))
        put(self, "memory_factor", _number("memory_factor", self.memory_factor, least=1, most=100))
        if self.max_memory_bytes is not None:
            memory = self.max_memory_bytes
            memory = whole("max_memory_bytes", memory, least=1, most=MAX_MEMORY_BYTES)
            put(self, "max_memory_bytes", memory)
        put(self, "max_losses", whole("max_losses", self.max_losses, least=1, most=MAX_RETRIES))
        rules = tuple(_rule(item) for item in _items("rules", self.rules))
        if len(rules) > MAX_RULES:
            raise BadInput(f"there are {len(rules)} rules, at most {MAX_RULES} are possible")
        put(self, "rules", rules)

    def rule_for(
        self, reason: str, exit_code: int | None = None, signal_number: int | None = None
    ) -> RetryRule | None:
        """Return the first rule that is for such a failure."""
        for rule in self.rules:
            if isinstance(rule, RetryRule) and rule.matches(reason, exit_code, signal_number):
                return rule
        return None


def retry_of(value: Any) -> RetryPolicy:
    """Return a policy given as such, or as a mapping of its fields; raises BadInput."""
    if isinstance(value, RetryPolicy):
        return value
    return RetryPolicy(**_fields_of(RetryPolicy, "retry", value))


def retry_row(policy: Any) -> dict[str, Any] | None:
    """Return a policy as it is kept in a row."""
    return None if policy is None else asdict(policy)


def policy_from_row(row: Mapping[str, Any] | None, *, max_attempts: int) -> RetryPolicy:
    """Return the policy of a job: that of its row, or one of `max_attempts` tries in all."""
    if row is None:
        return RetryPolicy(max_retries=max_attempts - 1)
    return retry_of(row)


def _rule(value: Any) -> RetryRule:
    if isinstance(value, RetryRule):
        return value
    return RetryRule(**_fields_of(RetryRule, "a retry rule", value))


def _fields_of(kind: type, what: str, value: Any) -> Mapping[str, Any]:
    names = [field.name for field in fields(kind)]
    if not isinstance(value, Mapping):
        raise BadInput(f"{what} must be a {kind.__name__} or a mapping, not {shown(value)}")
    unknown = sorted(str(name)[:50] for name in set(value) - set(names))
    if unknown:
        raise BadInput(f"{what} has no {', '.join(unknown[:5])}", hint=f"it has {', '.join(names)}")
    return value


def _items(what: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise BadInput(f"{what} must be a list, not {shown(value)}", hint="use [...]")
    return list(value)


def _count(what: str, value: Any) -> int:
    return whole(what, value, least=0, most=MAX_RETRIES)


def _delay(what: str, value: Any) -> float:
    return seconds(what, value, most=MAX_DELAY_S, zero=True)


def _number(what: str, value: Any, *, least: float, most: float) -> float:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if number is None or not least <= number <= most:
        raise BadInput(f"{what} must be a number from {least} to {most}, not {shown(value)}")
    return float(number)


def _reason(value: Any) -> str:
    if value not in CAUSES:
        hint = f"one of {', '.join(CAUSES)}; losses have max_losses"
        raise BadInput(f"{shown(value)} is no reason to try again after", hint=hint)
    return str(value)


def _signal(value: Any) -> int:
    if isinstance(value, str):
        name = value.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        if name not in signal.Signals.__members__:
            raise BadInput(f"there is no signal {shown(value)}")
        return int(signal.Signals[name])
    return whole("a signal", value, least=1, most=64)
