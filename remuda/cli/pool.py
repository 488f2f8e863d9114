"""`remuda pool`: create, look at, change and close pools."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.hosts_file import HostsFile
from remuda.cli.output import (
    Column,
    count,
    format_duration,
    format_size,
    note,
    print_details,
    print_json,
    print_rows,
    printable,
)
from remuda.cli.pool_elastic import elastic_changes, elastic_of
from remuda.cli.pool_options import fields_of, pool_options
from remuda.cli.records import pool_record, pool_size
from remuda.cli.types import DURATION_OR_ZERO, Assignment, json_option
from remuda.timespan import span_text

if TYPE_CHECKING:
    from remuda.client import Pool

_COLUMNS = [
    Column("POOL", "name"),
    Column("STATE", "state"),
    Column("PROVIDER", "provider"),
    Column("SIZE", pool_size),
    Column("SLOTS/VM", "slots_per_vm", right=True),
    Column("VMS", "vms", right=True),
    Column("SLOTS", "slots", right=True),
    Column("BUSY", "busy_slots", right=True),
    Column("WAITING", "waiting_jobs", right=True),
    Column("LIVE", "live_jobs", right=True),
]


@click.command("create", cls=Command, short_help="Create a pool and open it for jobs.")
@click.argument("name")
@click.option("--profile", metavar="NAME", help="A template; what else is given here goes first.")
@click.option("--provider", metavar="KIND", help="Who makes its VMs.  [default: local]")
@click.option(
    "--backend", metavar="KIND", help="How jobs are run on them.  [default: the provider's way]"
)
@click.option("--image", metavar="IMAGE", help="What VMs are made of.  [default: default]")
@pool_options
@click.option(
    "--hosts",
    type=HostsFile(),
    metavar="FILE",
    help="The hosts of a static pool: TOML or JSON, see docs/ssh.md.",
)
@click.option(
    "--installed-elsewhere",
    is_flag=True,
    help="Take a provider or backend whose package only the workers have.",
)
@click.option(
    "--no-submit", is_flag=True, help="Do not open it yet; `pool set` can then change all."
)
@json_option
def create(
    name: str,
    profile: str | None,
    provider: str | None,
    backend: str | None,
    image: str | None,
    hosts: list[dict[str, Any]] | None,
    installed_elsewhere: bool,
    no_submit: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Create a pool of VMs and open it for jobs.

    \b
        remuda pool create fix --vms 2 --slots-per-vm 4          # always two VMs
        remuda pool create sim --min-slots 0 --max-slots 8       # as many as its jobs need
        remuda pool create lab --provider static --hosts lab.toml --vms 3

    With any of the options marked "Elastic" the pool is elastic, and needs --max-slots (or a
    profile that says it).
    """
    fields = fields_of(options)
    elastic = {}
    if profile is None:
        provider, image = provider or "local", image or "default"
        elastic = elastic_of(options, provider=provider)
    else:
        fields = {**fields, **elastic_changes(options), "profile": profile}
    if hosts is not None and provider is not None and provider != "static":
        raise click.UsageError(f"--hosts is for --provider static, not {provider[:60]!r}")
    if hosts is None and provider == "static" and "hosts" not in fields.get("settings", {}):
        raise click.UsageError("a static pool needs --hosts FILE")
    if hosts is not None:
        fields["settings"] = {**fields.get("settings", {}), "hosts": hosts}
    if installed_elsewhere:
        fields["installed_elsewhere"] = True
    with connect.open_client() as client:
        pool = client.create_pool(name, provider=provider, backend=backend, image=image, **fields)
        try:
            if elastic:
                pool.setup_elastic(**elastic)
            if not no_submit:
                pool.submit()
        except Exception:
            pool.delete()  # a refused call leaves nothing behind, the name is free again
            raise
        record = pool_record(pool.update())
    if as_json:
        print_json([record])
    else:
        click.echo(f"pool {name} is {record['state']}: {pool_size(record)}")


@click.command("list", cls=Command, short_help="List pools.")
@click.option("--all", "ended", is_flag=True, help="Closed ones too.")
@click.option("--tag", multiple=True, metavar="TAG", help="Those with this tag. Repeatable.")
@click.option(
    "--label",
    type=Assignment(),
    multiple=True,
    metavar="KEY=VALUE",
    help="Those with this label. Repeatable.",
)
@json_option
def list_pools(
    ended: bool, tag: tuple[str, ...], label: tuple[tuple[str, str], ...], as_json: bool
) -> None:
    """List pools with their VMs, slots and jobs."""
    with connect.open_client() as client:
        found = client.pools(all=ended, tags=list(tag) or None, labels=dict(label) or None)
        records = [pool_record(pool) for pool in found]
    print_rows(_COLUMNS, records, as_json=as_json)


@click.command("show", cls=Command, short_help="Show all about one pool.")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a pool's settings, its VMs and its jobs."""
    with connect.open_client() as client:
        pool = client.pool(name).update()
        record = pool_record(pool)
        record["settings"] = pool.settings
        record["decision"] = pool.info().get("decision")
        record["jobs"] = client.counts(pool)
        record["errors"] = pool.errors
        record["execution_time_s"] = pool.execution_time_s
        record["vms_by_state"] = dict(Counter(vm.state for vm in client.vms(pool=pool)))
    if as_json:
        print_json([record])
        return
    elastic = record["elastic"] or {}
    print_details(
        [
            ("pool", record["name"]),
            ("state", record["state"]),
            ("errors", record["errors"]),
            ("shortname", record["shortname"]),
            ("profile", record["profile"]),
            ("owner", record["owner"]),
            ("provider", record["provider"]),
            ("backend", record["backend"]),
            ("image", record["image"]),
            ("settings", sorted(record["settings"])),
            ("offers", _offers(record)),
            ("order of offers", record["offer_order"] if record["offers"] else None),
            ("tags", record["tags"]),
            ("labels", _pairs(record["labels"])),
            ("constraints", _pairs(record["constraints"])),
            ("isolation", record["isolation"]),
            ("size", pool_size(record)),
            ("idle slots kept", elastic.get("minimum_idle_slots")),
            ("idle time", format_duration(elastic.get("minimum_idle_time_s"))),
            ("resize factor", elastic.get("resize_factor")),
            ("resize period", format_duration(elastic.get("resize_period_s"))),
            ("policies", [policy["name"] for policy in record["policies"] or ()]),
            ("ruled by", record["policy_name"]),
            ("sizing group", record["sizing_group"]),
            ("data centre", record["datacenter"]),
            ("scheduling type", record["scheduling_type"]),
            ("reserved group", record["reserved_group"]),
            ("slots others keep from it", record["short_slots"] or None),
            ("slots per VM", record["slots_per_vm"]),
            ("memory per VM", format_size(record["memory_bytes_per_vm"])),
            ("GPUs per VM", record["gpus_per_vm"] or None),
            ("secrets", _pairs(record["secrets"])),
            ("constants", sorted(record["constants"] or ())),
            ("preparation", _words(record["preparation"])),
            ("to prepare within", _only_with(record, "preparation", "preparation_timeout_s")),
            ("retry", _policy(record["retry"])),
            ("heartbeat", format_duration(record["heartbeat_s"])),
            ("stalling interval", format_duration(record["stalling_interval_s"])),
            ("to launch within", format_duration(record["launch_timeout_s"])),
            ("tries of a launch again", record["launch_retries"]),
            ("starting at once", record["max_starting"]),
            ("between two spawns", format_duration(record["spawn_interval_s"] or None)),
            ("no spawn before", record["paused_until"]),
            ("pausing since", record["paused_at"]),
            ("architecture", record["architecture"]),
            ("checked every", format_duration(record["check_interval_s"])),
            ("failed checks allowed", record["max_check_fails"]),
            ("free disk at least", format_size(record["min_free_disk_bytes"] or None)),
            ("health command", _words(record["health_command"])),
            ("VM age at most", format_duration(record["max_vm_age_s"])),
            ("jobs per VM at most", record["max_jobs_per_vm"]),
            ("dead-man timer", format_duration(record["dead_man_s"])),
            ("dead-man command", _words(record["dead_man_command"])),
            ("reboot command", _words(record["reboot_command"])),
            ("rolling update", _rollout(pool) if record["rollout_max_unavailable"] else None),
            ("frozen", record["frozen_reason"]),
            ("VMs", record["vms_by_state"] or "none"),
            ("slots", f"{record['busy_slots']} of {record['slots']} busy"),
            ("jobs", {s: n for s, n in record["jobs"].items() if n} or "none"),
            ("CPU time used", format_duration(record["execution_time_s"] or None)),
            ("created", record["created_at"]),
            ("changed", record["updated_at"]),
            ("in this state since", record["state_changed_at"]),
            ("ended", record["ended_at"]),
            ("deleted after", span_text(record["completion_ttl_s"])),
            ("deleted for room", "yes" if record["auto_delete"] else None),
        ]
    )


@click.command("set", cls=Command, short_help="Change settings of a pool.")
@click.argument("name")
@pool_options
def set_(name: str, **options: Any) -> None:
    """Change settings of a pool, all or none.

    What its VMs are like (slots, memory, GPUs, preparation, isolation, provider's settings) can be
    set only until it is open for jobs; the size at any time.
    """
    fields = {**fields_of(options), **elastic_changes(options)}
    if not fields:
        raise click.UsageError("nothing to set")
    with connect.open_client() as client:
        pool = client.pool(name)
        pool.set(**fields)
        record = pool_record(pool.update())
    click.echo(f"pool {name} is {record['state']}: {pool_size(record)}")


@click.command("close", cls=Command, short_help="Close a pool: its VMs end after their jobs.")
@click.argument("name")
@click.option("--now", is_flag=True, help="Cancel its running jobs and end its leases, too.")
@click.option("--wait", is_flag=True, help="Return when it is closed and its VMs are gone.")
@click.option("--timeout", type=DURATION_OR_ZERO, help="Wait, at most so long.")
def close(name: str, now: bool, wait: bool, timeout: float | None) -> None:
    """Close a pool: it takes no more jobs, waiting ones are cancelled, running ones end first.

    Its VMs end after their jobs, then it is CLOSED. A closed pool's jobs can still be looked at.
    """
    with connect.open_client() as client:
        pool = client.pool(name)
        pool.close(now=now)
        if wait or timeout is not None:
            pool.wait_closed(timeout_s=timeout)
        info = pool.update().info()
        leases = [] if info["state"] == "CLOSED" else client.leases(pool=pool)
    click.echo(f"pool {name} is {info['state']}")
    left = [count(info["live_jobs"], "job")] if info["live_jobs"] else []
    left += [count(len(leases), "lease")] if leases else []
    if info["state"] != "CLOSED" and left:
        note(f"{' and '.join(left)} still to end; --now {'cancels' if not leases else 'ends them'}")


@click.command("resume", cls=Command, short_help="Let a pool ask for VMs again at once.")
@click.argument("name")
def resume(name: str) -> None:
    """Let a pool that paused after failed launches ask for VMs again, without waiting any longer.

    What its provider refused for want of capacity or quota is asked for again too.
    """
    with connect.open_client() as client:
        pool = client.pool(name)
        pool.resume()
        state = pool.update().state
    click.echo(f"pool {name} is {state}")


@click.command(
    "explain", cls=Command, short_help="Say why a pool has its size, and what comes next."
)
@click.argument("name")
def explain(name: str) -> None:
    """Say why a pool has the size it has, what it waits for, and what it does next and when."""
    with connect.open_client() as client:
        for sentence in client.pool(name).explain():
            click.echo(printable(sentence))


def _offers(record: Mapping[str, Any]) -> list[str]:
    """Return the offers as they are asked, each with its price and why it is passed over now."""
    refused = {row["offer"]: row["reason"] for row in record["refusals"] or ()}
    told = []
    for offer in record["offers"] or ():
        price = f" at {offer['price']:g}" if offer.get("price") is not None else ""
        why = f" (not now: {refused[offer['name']]})" if offer["name"] in refused else ""
        told.append(f"{offer['name']}{price}{why}")
    return told


def _pairs(mapping: Mapping[str, Any] | None) -> list[str]:
    return [f"{key}={value}" for key, value in sorted((mapping or {}).items())]


def _words(command: Sequence[str] | None) -> str | None:
    return shlex.join(command) if command else None


def _rollout(pool: Pool) -> str:
    state = pool.rollout()
    are, are_not = (
        f"{number} VM is" if number == 1 else f"{number} VMs are"
        for number in (state["current"], state["outdated"])
    )
    return f"to {state['image']}: {are} of it, {are_not} not yet"


def _only_with(record: Mapping[str, Any], what: str, seconds: str) -> str:
    return format_duration(record[seconds]) if record[what] else ""


def _policy(retry: Mapping[str, Any] | None) -> str:
    """Return what a policy says that differs from the defaults."""
    if retry is None:
        return ""
    from remuda.retries import RetryPolicy, retry_row

    usual = retry_row(RetryPolicy()) or {}
    said = {name: value for name, value in retry.items() if value != usual.get(name)}
    if "rules" in said:
        said["rules"] = len(said["rules"])
    return ", ".join(f"{name}={value}" for name, value in said.items() if value not in (None, 0))
