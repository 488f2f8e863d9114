"""The options that `pool create` and `pool set` share, and the fields of a pool they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from remuda.cli.offers_file import OffersFile
from remuda.cli.pool_sizing import PoliciesFile
from remuda.cli.provider_setting import ProviderSetting
from remuda.cli.types import (
    DURATION,
    DURATION_OR_ZERO,
    ISOLATIONS,
    SIZE,
    SPAN,
    Assignment,
    Input,
    JsonValue,
    inputs_of,
)

F = TypeVar("F", bound=Callable[..., Any])

_FIELDS = {
    "shortname": "shortname",
    "completion_ttl": "completion_ttl",
    "auto_delete": "auto_delete",
    "wait_for_resources": "wait_for_resources",
    "slots_per_vm": "slots_per_vm",
    "memory_per_vm": "memory_bytes_per_vm",
    "gpus_per_vm": "gpus_per_vm",
    "prepare": "preparation",
    "prepare_timeout": "preparation_timeout_s",
    "vms": "instance_count",
    "group": "sizing_group",
    "datacenter": "datacenter",
    "offer_order": "offer_order",
    "isolation": "isolation",
    "scheduling_type": "scheduling_type",
    "reserved_group": "reserved_group",
    "heartbeat": "heartbeat_s",
    "stalling_interval": "stalling_interval_s",
    "launch_timeout": "launch_timeout_s",
    "launch_retries": "launch_retries",
    "max_starting": "max_starting",
    "spawn_interval": "spawn_interval_s",
    "max_vms_per_owner": "max_vms_per_owner",
    "reuse_opportunity": "reuse_opportunity_s",
    "reuse_max_count": "reuse_max_count",
    "reuse_max_time": "reuse_max_s",
    "architecture": "architecture",
    "check_every": "check_interval_s",
    "check_timeout": "check_timeout_s",
    "max_check_fails": "max_check_fails",
    "min_free_disk": "min_free_disk_bytes",
    "health_command": "health_command",
    "max_vm_age": "max_vm_age_s",
    "max_jobs_per_vm": "max_jobs_per_vm",
    "dead_man": "dead_man_s",
    "dead_man_command": "dead_man_command",
    "reboot_command": "reboot_command",
}


def pool_options(function: F) -> F:
    """Add the shared options; all are None (or empty) unless given."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def fields_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields given, but the elastic ones."""
    fields = {field: options[name] for name, field in _FIELDS.items() if options[name] is not None}
    if options["tag"]:
        fields["tags"] = list(options["tag"])
    access = _access(options)
    if access is not None:
        fields["secrets"] = access
    if options["resource"]:
        fields["resources"] = inputs_of(options["resource"])
    if options["label"]:
        fields["labels"] = dict(options["label"])
    if options["constraint"]:
        fields["constraints"] = dict(options["constraint"])
    if options["tag_priority"]:
        fields["tag_priorities"] = _priorities(options["tag_priority"])
    if options["constant"]:
        fields["constants"] = dict(options["constant"])
    if options["offer"]:
        fields["offers"] = [offer for given in options["offer"] for offer in given]
    if options["policies"]:
        fields["policies"] = options["policies"]
    if options["retry"]:
        fields["retry"] = dict(options["retry"])
    if options["setting"]:
        fields["settings"] = dict(options["setting"])
    return fields


def _access(options: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """Return which secrets its jobs are given; None: nothing is said of it."""
    given = {"names": list(options["secret"]), "prefixes": list(options["secret_prefix"])}
    if options["no_secrets"]:
        if any(given.values()):
            raise click.UsageError("--no-secrets goes with no other secrets")
        return {}
    return given if any(given.values()) else None


def _priorities(pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    try:
        return {tag: int(value) for tag, value in pairs}
    except ValueError:
        raise click.BadParameter("a priority is a whole number: TAG=10") from None


_SLOTS = click.IntRange(0)

_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--slots-per-vm",
        type=click.IntRange(1),
        metavar="N",
        help="Slots of each VM.  [default: 1]",
    ),
    click.option("--memory-per-vm", type=SIZE, help="Memory jobs on a VM may ask for together."),
    click.option("--gpus-per-vm", type=_SLOTS, metavar="N", help="GPUs of each VM.  [default: 0]"),
    click.option(
        "--vms", type=_SLOTS, metavar="N", help="VMs of a pool of fixed size.  [default: 1]"
    ),
    click.option("--min-slots", type=_SLOTS, metavar="N", help="Elastic: never fewer slots."),
    click.option(
        "--max-slots", type=click.IntRange(1), metavar="N", help="Elastic: never more slots."
    ),
    click.option(
        "--min-idle-slots",
        type=_SLOTS,
        metavar="N",
        help="Elastic: slots kept free for what comes.",
    ),
    click.option(
        "--idle-time", type=DURATION_OR_ZERO, help="Elastic: a VM idle for so long is ended."
    ),
    click.option(
        "--resize-factor",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="F",
        help="Elastic: grow by at most this part of --max-slots at a time.",
    ),
    click.option(
        "--resize-period",
        type=DURATION,
        help="Elastic: how often the size is decided.  [default: local 1s, others 90s]",
    ),
    click.option(
        "--policies",
        type=PoliciesFile(),
        metavar="FILE|JSON",
        help="When its size follows other rules: see docs/sizing.md and `pool policies`.",
    ),
    click.option(
        "--group", metavar="GROUP", help="With others of the group it shares a ceiling of slots."
    ),
    click.option(
        "--datacenter", metavar="NAME", help="Where its machines stand: see docs/carbon.md."
    ),
    click.option(
        "--isolation", type=click.Choice(ISOLATIONS), help="Who may share a VM.  [default: shared]"
    ),
    click.option(
        "--scheduling-type",
        type=click.Choice(["flex", "on-demand", "reserved"]),
        help="flex: its work is preempted where others' needs the place; see docs/pools.md."
        "  [default: on-demand]",
    ),
    click.option(
        "--reserved-group",
        metavar="GROUP",
        help="Reserved: the group of hosts that it, and no other, has.",
    ),
    click.option(
        "--constant",
        type=Assignment(from_environment=True),
        multiple=True,
        metavar="NAME[=VALUE]",
        help="An environment variable of all its jobs. Repeatable.",
    ),
    click.option(
        "--prepare",
        metavar="CMD",
        help="A command each VM runs before it takes jobs: words, no line of a shell.",
    ),
    click.option("--prepare-timeout", type=DURATION, help="How long it may take.  [default: 10m]"),
    click.option(
        "--retry",
        type=JsonValue(),
        multiple=True,
        help="How its jobs are tried again: max_retries=2, delay_s=10; see docs/retries.md. Repeatable.",
    ),
    click.option("--heartbeat", type=DURATION, help="How often a VM gives a sign of life."),
    click.option("--stalling-interval", type=DURATION, help="A VM silent for so long is replaced."),
    click.option(
        "--offer",
        type=OffersFile(),
        multiple=True,
        metavar="FILE|JSON",
        help="What its VMs may be made from, in order: see docs/providers.md. Repeatable.",
    ),
    click.option(
        "--offer-order",
        type=click.Choice(["listed", "cheapest", "deadline"]),
        help="Which offer is asked first; see docs/providers.md.  [default: listed]",
    ),
    click.option(
        "--launch-timeout", type=DURATION, help="A VM not up by then is given up.  [default: 10m]"
    ),
    click.option(
        "--launch-retries",
        type=click.IntRange(0, 100),
        metavar="N",
        help="How often a step of a launch is tried again.  [default: 3]",
    ),
    click.option(
        "--max-starting",
        type=click.IntRange(1),
        metavar="N",
        help="VMs that may be starting at once.  [default: any number]",
    ),
    click.option(
        "--spawn-interval",
        type=DURATION_OR_ZERO,
        help="How long to wait between two new VMs.  [default: 0]",
    ),
    click.option(
        "--tag-priority",
        type=Assignment(),
        multiple=True,
        metavar="TAG=N",
        help="What a tag is worth: leases that ask for it go first where it is worth most. Repeatable.",
    ),
    click.option(
        "--max-vms-per-owner",
        type=_SLOTS,
        metavar="N",
        help="Of its VMs one owner may have by leases.",
    ),
    click.option(
        "--reuse-opportunity",
        type=DURATION_OR_ZERO,
        help="For so long after a lease a VM waits for its owner's next one, then it ends.",
    ),
    click.option(
        "--reuse-max-count", type=_SLOTS, metavar="N", help="A VM is leased again at most so often."
    ),
    click.option(
        "--reuse-max-time", type=DURATION_OR_ZERO, help="A VM is leased again for at most so long."
    ),
    click.option("--architecture", metavar="NAME", help="What a VM must be, or it is an ERROR."),
    click.option(
        "--check-every", type=DURATION, help="How often a VM's health is checked.  [default: 1m]"
    ),
    click.option("--check-timeout", type=DURATION, help="What a check may take.  [default: 20s]"),
    click.option(
        "--max-check-fails",
        type=_SLOTS,
        metavar="N",
        help="A VM that fails more checks in a row goes.  [default: 3]",
    ),
    click.option("--min-free-disk", type=SIZE, help="A VM with less has failed its check."),
    click.option(
        "--health-command",
        metavar="CMD",
        help="A command each check runs on the VM: words, no line of a shell.",
    ),
    click.option("--max-vm-age", type=DURATION, help="A VM so old is drained and replaced."),
    click.option(
        "--max-jobs-per-vm",
        type=click.IntRange(1),
        metavar="N",
        help="A VM that has had so many is drained and replaced.",
    ),
    click.option(
        "--dead-man",
        type=DURATION,
        help="A VM no worker speaks to for so long ends all it runs, and itself.",
    ),
    click.option(
        "--dead-man-command",
        metavar="CMD",
        help="How.  [default: /sbin/poweroff; for local and static pools nothing]",
    ),
    click.option(
        "--reboot-command",
        metavar="CMD",
        help="How a VM restarts.  [default: its provider's way, or /sbin/reboot]",
    ),
    click.option("--tag", multiple=True, metavar="TAG", help="A word to find it by. Repeatable."),
    click.option(
        "--label",
        type=Assignment(),
        multiple=True,
        metavar="KEY=VALUE",
        help="A key and a value to find it by. Repeatable.",
    ),
    click.option(
        "--shortname", metavar="NAME", help="A DNS label of its own.  [default: its UUID]"
    ),
    click.option(
        "--constraint",
        type=JsonValue(),
        multiple=True,
        help="What its VMs must be: min_cores=8, ssd=true; see docs/requirements.md. Repeatable.",
    ),
    click.option(
        "--resource",
        type=Input(),
        multiple=True,
        help="A file each VM has in $REMUDA_RESOURCES; or a folder, a pattern, a URL. Repeatable.",
    ),
    click.option(
        "--secret",
        multiple=True,
        metavar="NAME",
        help="A secret that its owner's jobs are given as a variable. Repeatable.",
    ),
    click.option(
        "--secret-prefix",
        multiple=True,
        metavar="PREFIX",
        help="All secrets whose names begin so. Repeatable.",
    ),
    click.option("--no-secrets", is_flag=True, help="None any more."),
    click.option(
        "--wait-for-resources/--no-wait-for-resources",
        default=None,
        help="Jobs that do not say start on a VM with the newest resources only.",
    ),
    click.option(
        "--completion-ttl",
        type=SPAN,
        help="It is deleted so long after its end: 2d, or d.hh:mm:ss.  [default: never]",
    ),
    click.option(
        "--auto-delete/--no-auto-delete",
        default=None,
        help="Delete it, once closed, when its owner may have no more pools.",
    ),
    click.option(
        "--setting",
        type=ProviderSetting(),
        multiple=True,
        help="A setting of its provider; JSON, or text as it is. Repeatable.",
    ),
]
