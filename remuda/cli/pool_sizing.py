"""`remuda pool policies`, `decisions`: the rules for a pool's size, and what they came to."""

from __future__ import annotations

from typing import Any

import click

from remuda.cli import connect
from remuda.cli.base import Command
from remuda.cli.output import Column, print_json, print_rows
from remuda.cli.table_file import TableFile
from remuda.cli.types import json_option


class PoliciesFile(TableFile):
    """Policies: one, a list of them, or a table with the list `policies`."""

    key = "policies"

    def rows(self, found: Any) -> list[dict[str, Any]]:
        """Return the policies, each checked."""
        from remuda.policy_rows import policies_of, policy_row

        return [policy_row(policy) for policy in policies_of(found)]


@click.command("policies", cls=Command, short_help="Show or set the policies of a pool's size.")
@click.argument("name")
@click.option(
    "--policies",
    type=PoliciesFile(),
    metavar="FILE|JSON",
    help="Set them, all at once: TOML or JSON, see docs/sizing.md.",
)
@click.option("--clear", is_flag=True, help="Have none: the pool's own size rules.")
@json_option
def policies(name: str, policies: list[dict[str, Any]] | None, clear: bool, as_json: bool) -> None:
    """Show the policies of a pool's size, in order, after setting them if asked to.

    \b
        remuda pool policies sim --policies week.toml
        remuda pool policies sim --clear

    The first that is active rules; where none is, the pool's own size does.
    """
    if clear and policies is not None:
        raise click.UsageError("--policies and --clear exclude each other")
    with connect.open_client() as client:
        pool = client.pool(name)
        if clear or policies is not None:
            pool.set_policies(policies or [])
        found = pool.policies()
    if as_json:
        print_json(found)
        return
    from remuda.client.pool_words import describe_policy
    from remuda.policies import policy_at
    from remuda.policy_rows import policies_of

    if not found:
        click.echo(f"pool {name} has no policies: its own size rules")
        return
    from datetime import UTC, datetime

    read = policies_of(found)
    ruling = policy_at(read, datetime.now(UTC))
    shown = [
        {
            "order": number,
            "name": policy.name,
            "kind": policy.kind,
            "rules": "now" if policy is ruling else "",
            "says": describe_policy(policy),
        }
        for number, policy in enumerate(read, 1)
    ]
    columns = [Column(title.upper(), title) for title in ("order", "name", "kind", "rules", "says")]
    print_rows(columns, shown, as_json=False)


_DECISIONS = [
    Column("AT", "at"),
    Column("STEP", "step"),
    Column("POLICY", "policy"),
    Column("ALIVE", "alive", right=True),
    Column("TARGET", "target", right=True),
    Column("GROW", "grow_vms", right=True),
    Column("CLOSE", "close_vms", right=True),
    Column("DRAIN", "drain_vms", right=True),
    Column("REASON", "reason"),
]


@click.command("decisions", cls=Command, short_help="List a pool's sizing decisions.")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@json_option
def decisions(name: str, limit: int, as_json: bool) -> None:
    """List the newest sizing decisions of a pool, oldest first: each that differed from the last.

    With --json also what each was made from (`inputs`), and what was to come next (`outlook`).
    """
    with connect.open_client() as client:
        found = client.pool(name).decisions(limit=limit)
    print_rows(_DECISIONS, found, as_json=as_json)
