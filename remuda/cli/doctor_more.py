"""What `remuda doctor` finds once all answers: queues, pools and VMs in trouble, keys, providers."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from remuda.cli import health
from remuda.cli.output import count, format_duration
from remuda.errors import RemudaError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from remuda.config import Settings

_BACKLOG = 1000  # messages; they are wake-ups, handled in milliseconds
_PROVIDER_S = 10.0
_MOST = 5  # of one kind are told by name


class Finding(NamedTuple):
    """A check's status (ok, warn, fail), what was found, and what to do."""

    status: str
    detail: str
    advice: str = ""


def queues(settings: Settings, served: Mapping[str, set[str]]) -> Finding:
    """Say whether every queue is served by a worker, and how many messages wait in each.

    `served`: the queues of each worker.
    """
    from remuda.tasks import names

    taken = set().union(*served.values()) if served else set()
    missing = [queue for queue in names.QUEUES if queue not in taken]
    waiting = health.queue_sizes(settings, names.QUEUES)
    detail = ", ".join(f"{queue} {waiting[queue]}" for queue in names.QUEUES) + " waiting"
    if missing:
        advice = f"start a worker that serves it: `remuda worker -Q {','.join(missing)}`"
        return Finding("fail", f"nobody serves {', '.join(missing)}; {detail}", advice)
    if max(waiting.values()) > _BACKLOG:
        return Finding("warn", detail, "start more workers, on this host or others")
    return Finding("ok", detail)


def pools(engine: Engine) -> Finding:
    """Say which pools pause after failing launches, or have not got what they asked for."""
    found = health.query(
        engine,
        """SELECT name, state, message, paused_until > now() AS paused FROM pools
           WHERE state NOT IN ('UNSUBMITTED', 'CLOSED', 'PENDING_DELETE') ORDER BY name""",
    )
    bad = [row for row in found if row["paused"] or row["state"] == "FAILURE"]
    if not bad:
        return Finding("ok", f"{count(len(found), 'open pool')}, none in trouble")
    told = "; ".join(f"{row['name']}: {row['message'] or row['state']}" for row in bad[:_MOST])
    return Finding("warn", told, "`remuda pool show NAME` tells more")


def unended(engine: Engine) -> Finding:
    """Say which VMs' machines their providers do not end, for how long, and why."""
    from remuda.models.vm_life import UNENDED

    found = health.query(
        engine,
        f"""SELECT name, split_part(error, '{UNENDED}', 2) AS why,
                   extract(epoch FROM now() - state_changed_at)::float8 AS since_s
            FROM vms WHERE state <> 'HALTED' AND strpos(error, '{UNENDED}') > 0
            ORDER BY state_changed_at, id""",
    )
    if not found:
        return Finding("ok", "all end that are to end")
    told = "; ".join(
        f"{row['name']}, stopping for {format_duration(row['since_s'])}: {row['why'][:200]}"
        for row in found[:_MOST]
    )
    more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return Finding(
        "warn",
        f"{count(len(found), 'VM')} cannot be ended: {told}{more}",
        "mend what the provider says, it is tried again until it succeeds; till then the machine may"
        " run on, and cost: `remuda vm show NAME`",
    )


def keys(engine: Engine) -> Finding:
    """Look at the key files that open pools name: private, or not on this machine at all."""
    found = health.query(
        engine,
        """SELECT name, settings FROM pools
           WHERE state NOT IN ('CLOSED', 'PENDING_DELETE') ORDER BY name""",
    )
    files = {(path, row["name"]) for row in found for path in _named(row["settings"], "key_file")}
    unpinned = sorted(row["name"] for row in found if _unpinned(row["settings"]))
    absent, loose = [], []
    for path, pool in sorted(files):
        try:
            mode = Path(path).expanduser().stat().st_mode
        except OSError:
            absent.append(f"{path} ({pool})")
            continue
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            loose.append(f"{path} ({pool})")
    if loose:
        return Finding("fail", f"others can read {', '.join(loose)}", "chmod 600")
    if unpinned:
        advice = "give each its host_key, or known_hosts"
        return Finding("warn", f"hosts without a pinned key in {', '.join(unpinned)}", advice)
    here = f"{count(len(files) - len(absent), 'key file')} here, private"
    if absent:
        return Finding("ok", f"{here}; not on this machine: {', '.join(absent)}")
    return Finding("ok", here if files else "no pool names a key file")


def secrets(engine: Engine, settings: Settings) -> Finding:
    """Say whether this machine has the keys of all secrets that are stored."""
    from remuda.keyring import KeyRing

    found = health.query(
        engine,
        """SELECT o.name AS owner, s.name, s.stored FROM secrets s
           JOIN owners o ON o.id = s.owner_id ORDER BY s.id""",
    )
    if not found:
        return Finding("ok", "none stored")
    ring = KeyRing(settings)
    try:
        for row in found:
            ring.decrypt(row["owner"], row["name"], bytes(row["stored"]))
    except RemudaError as error:
        return Finding("fail", error.message, error.hint)
    return Finding("ok", f"{count(len(found), 'secret')}, all readable here")


def providers(engine: Engine, settings: Settings) -> Iterator[tuple[str, Finding]]:
    """Ask the provider of each open pool, from this machine, for what it has."""
    from remuda.models import machines
    from remuda.models.database import reading

    with reading(engine) as connection:
        asked = machines.providers_in_use(connection)
    with ThreadPoolExecutor(8) as threads:
        answers = [
            (kind, tag, threads.submit(_ask, kind, tag, its, settings)) for kind, tag, its in asked
        ]
        for kind, tag, answer in answers:
            try:
                vms = answer.result(_PROVIDER_S)
            except Late:
                yield kind, Finding("fail", f"no answer in {_PROVIDER_S:g} s for pool {tag}")
            except RemudaError as error:
                yield kind, Finding("fail", error.message, error.hint)
            else:
                yield kind, Finding("ok", f"answers: {count(vms, 'VM')} of pool {tag}")


def _ask(kind: str, tag: str, its: Mapping[str, Any], settings: Settings) -> int:
    from remuda.workers.providers import get_provider

    return len(get_provider(kind, settings, its).list(tag))


def _named(value: Any, name: str) -> Iterator[str]:
    """Yield the texts under `name`, however deep in the settings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == name and isinstance(inner, str) and inner:
                yield inner
            yield from _named(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, name)


def _unpinned(settings: Mapping[str, Any]) -> bool:
    hosts = settings.get("hosts")
    return isinstance(hosts, list) and any(
        isinstance(host, Mapping) and not (host.get("host_key") or host.get("known_hosts"))
        for host in hosts
    )
