"""Owners, images and pools: who pays, what VMs are made of, where they come from."""

from __future__ import annotations

import uuid

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.states import ImageState, PoolState
from remuda.models.tables.base import (
    Base,
    BigId,
    BigInt,
    Created,
    Json,
    JsonList,
    Timestamp,
    one_of,
)


class Owner(Base):
    """Who jobs, pools and leases belong to."""

    __tablename__ = "owners"
    __table_args__ = (
        CheckConstraint("length(name) BETWEEN 1 AND 200", name="name"),
        # Upper bounds also keep out NaN and infinity.
        CheckConstraint("weight > 0 AND weight <= 1000000", name="weight"),
        CheckConstraint("max_vms >= 0", name="max_vms"),
        CheckConstraint("max_pools >= 0", name="max_pools"),
        CheckConstraint("group_id <> id", name="group_id"),
        Index("ix_owners_group_id", "group_id", postgresql_where=text("group_id IS NOT NULL")),
    )

    id: Mapped[BigId]
    name: Mapped[str] = mapped_column(Text, unique=True)
    weight: Mapped[float] = mapped_column(server_default="1")
    mean_wall_s: Mapped[float | None]  # learned from its jobs outside arrays
    created_at: Mapped[Created]
    # How many VMs may serve it, of a group all its members together, at once; None: any number.
    max_vms: Mapped[int | None]
    budget_stop: Mapped[str | None] = mapped_column(Text)  # why nothing of theirs is placed
    max_pools: Mapped[int | None]  # how many it may have that are not deleted; None: any number
    # The owner whose weight and limits it shares with the group's other members.
    group_id: Mapped[BigInt | None] = mapped_column(ForeignKey("owners.id"))


class Quota(Base):
    """What an owner, or the members of a group together, may have: in a pool, or in all of them."""

    __tablename__ = "quotas"
    __table_args__ = (
        CheckConstraint("max_slots >= 0", name="max_slots"),
        CheckConstraint("max_queued >= 0", name="max_queued"),
        CheckConstraint("max_vms >= 0", name="max_vms"),
        CheckConstraint("num_nonnulls(max_slots, max_queued, max_vms) > 0", name="something"),
        Index(
            "uq_quotas_owner_id_pool_id",
            "owner_id",
            text("coalesce(pool_id, 0::bigint)"),
            unique=True,
        ),
    )

    id: Mapped[BigId]
    owner_id: Mapped[BigInt] = mapped_column(ForeignKey("owners.id"))
    pool_id: Mapped[BigInt | None] = mapped_column(ForeignKey("pools.id"))  # None: all pools
    max_slots: Mapped[int | None]  # of its jobs that are on machines
    max_queued: Mapped[int | None]  # jobs that wait
    max_vms: Mapped[int | None]  # VMs that serve it at once


class Usage(Base):
    """Slot-seconds of an owner's attempts that ended by `until`, older ones counting less."""

    __tablename__ = "usages"
    __table_args__ = (CheckConstraint("slot_s >= 0", name="slot_s"),)

    owner_id: Mapped[BigInt] = mapped_column(ForeignKey("owners.id"), primary_key=True)
    slot_s: Mapped[float]
    until: Mapped[Timestamp]


class Image(Base):
    """What VMs of a provider are made of."""

    __tablename__ = "images"
    __table_args__ = (
        one_of("state", ImageState),
        Index("uq_images_provider_name", "provider", "name", unique=True),
    )

    id: Mapped[BigId]
    provider: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, server_default="NEW")
    message: Mapped[str | None] = mapped_column(Text)  # what is wrong with it
    validated_at: Mapped[Timestamp | None]  # when a VM made of it first gave a sign of life
    state_changed_at: Mapped[Created]
    created_at: Mapped[Created]


class Pool(Base):
    """Where VMs come from, how many, and the rules for sharing them."""

    __tablename__ = "pools"
    __table_args__ = (
        one_of("state", PoolState),
        CheckConstraint("name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'", name="name"),
        CheckConstraint("slots_per_vm BETWEEN 1 AND 100000", name="slots_per_vm"),
        CheckConstraint("memory_bytes_per_vm > 0", name="memory_bytes_per_vm"),
        CheckConstraint("gpus_per_vm BETWEEN 0 AND 1024", name="gpus_per_vm"),
        CheckConstraint(
            "preparation_timeout_s > 0 AND preparation_timeout_s <= 86400",
            name="preparation_timeout_s",
        ),
        CheckConstraint("instance_count BETWEEN 0 AND 100000", name="instance_count"),
        CheckConstraint(
            "elastic_minimum_slots >= 0 AND elastic_minimum_slots <= elastic_maximum_slots"
            " AND elastic_maximum_slots <= 10000000 AND elastic_minimum_idle_slots >= 0"
            " AND elastic_minimum_idle_slots <= elastic_maximum_slots"
            " AND elastic_minimum_idle_time_s >= 0 AND elastic_minimum_idle_time_s <= 31536000"
            " AND elastic_resize_factor > 0 AND elastic_resize_factor <= 1"
            " AND elastic_resize_period_s >= 1 AND elastic_resize_period_s <= 31536000",
            name="elastic",
        ),
        CheckConstraint(
            "heartbeat_s > 0 AND stalling_interval_s > heartbeat_s"
            " AND stalling_interval_s <= 31536000",
            name="heartbeat",
        ),
        CheckConstraint(
            "check_interval_s >= 1 AND check_interval_s <= 31536000 AND check_timeout_s > 0"
            " AND check_timeout_s <= 600 AND max_check_fails BETWEEN 0 AND 1000"
            " AND min_free_disk_bytes >= 0",
            name="checks",
        ),
        CheckConstraint("max_vm_age_s > 0 AND max_vm_age_s <= 315360000", name="max_vm_age_s"),
        CheckConstraint("max_jobs_per_vm > 0", name="max_jobs_per_vm"),
        CheckConstraint("dead_man_s >= 1 AND dead_man_s <= 31536000", name="dead_man_s"),
        CheckConstraint("rollout_max_unavailable > 0", name="rollout_max_unavailable"),
        CheckConstraint(
            "(frozen_at IS NULL) = (frozen_reason IS NULL) AND (frozen_at IS NOT NULL"
            " OR loss_confirmed_at IS NULL)",
            name="frozen",
        ),
        CheckConstraint("deleted_at IS NULL OR state = 'PENDING_DELETE'", name="deleted"),
        CheckConstraint(
            "launch_timeout_s > 0 AND launch_timeout_s <= 86400 AND launch_retries BETWEEN 0 AND 100"
            " AND max_starting > 0 AND spawn_interval_s >= 0 AND spawn_interval_s <= 86400",
            name="launch",
        ),
        CheckConstraint(
            "isolation IN ('shared', 'owner', 'sandbox', 'single_use')", name="isolation"
        ),
        CheckConstraint(
            "(state IN ('CLOSED', 'PENDING_DELETE')) = (ended_at IS NOT NULL)", name="ended"
        ),
        CheckConstraint(
            "jsonb_typeof(policies) = 'array'"
            " AND num_nulls(policy_name, policy_minimum_slots, policy_maximum_slots) IN (0, 3)"
            " AND policy_minimum_slots >= 0 AND policy_minimum_slots <= policy_maximum_slots"
            " AND policy_resize_period_s >= 1"
            " AND (policy_name IS NOT NULL OR policy_resize_period_s IS NULL)",
            name="policies",
        ),
        CheckConstraint("length(sizing_group) BETWEEN 1 AND 63", name="sizing_group"),
        CheckConstraint("offer_order IN ('listed', 'cheapest', 'deadline')", name="offer_order"),
        CheckConstraint("length(datacenter) BETWEEN 1 AND 63", name="datacenter"),
        CheckConstraint("max_vms_per_owner >= 0", name="max_vms_per_owner"),
        CheckConstraint(
            "(reuse_opportunity_s IS NULL OR reuse_opportunity_s BETWEEN 0 AND 31536000)"
            " AND (reuse_max_count IS NULL OR reuse_max_count >= 0)"
            " AND (reuse_max_s IS NULL OR reuse_max_s BETWEEN 0 AND 31536000)",
            name="reuse",
        ),
        CheckConstraint(
            "scheduling_type IN ('flex', 'on_demand', 'reserved')"
            " AND (scheduling_type = 'reserved') = (reserved_group IS NOT NULL)"
            " AND length(reserved_group) BETWEEN 1 AND 63",
            name="scheduling",
        ),
        CheckConstraint(
            "short_slots >= 0 AND (short_slots > 0) = (short_since IS NOT NULL)"
            " AND (short_slots = 0 OR scheduling_type <> 'flex')",
            name="short",
        ),
        CheckConstraint("shortname ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'", name="shortname"),
        CheckConstraint(
            "completion_ttl_s > 0 AND completion_ttl_s <= 315360000", name="completion_ttl_s"
        ),
        CheckConstraint(
            "purged_at IS NULL OR deleted_at IS NOT NULL AND (purge_results OR purge_resources)",
            name="purged",
        ),
        # A closed pool's name can be used again; its row stays for its jobs.
        Index(
            "uq_pools_name_open",
            "name",
            unique=True,
            postgresql_where=text("state NOT IN ('CLOSED', 'PENDING_DELETE')"),
        ),
        Index(
            "uq_pools_shortname_open",
            "shortname",
            unique=True,
            postgresql_where=text("state NOT IN ('CLOSED', 'PENDING_DELETE')"),
        ),
    )

    id: Mapped[BigId]
    uuid: Mapped[uuid.UUID] = mapped_column(server_default=func.gen_random_uuid(), unique=True)
    name: Mapped[str] = mapped_column(Text)
    owner_id: Mapped[BigInt] = mapped_column(ForeignKey("owners.id"))
    image_id: Mapped[BigInt] = mapped_column(ForeignKey("images.id"))
    provider: Mapped[str] = mapped_column(Text)
    backend: Mapped[str] = mapped_column(Text)
    settings: Mapped[Json] = mapped_column(server_default="{}")
    offers: Mapped[JsonList] = mapped_column(server_default="[]")  # see `remuda.offers`, in order
    offer_order: Mapped[str] = mapped_column(Text, server_default="listed")
    tags: Mapped[JsonList] = mapped_column(server_default="[]")
    isolation: Mapped[str] = mapped_column(Text, server_default="shared")

    slots_per_vm: Mapped[int]
    memory_bytes_per_vm: Mapped[BigInt | None]
    architecture: Mapped[str | None] = mapped_column(Text)  # that its VMs must have
    gpus_per_vm: Mapped[int] = mapped_column(server_default="0")
    constants: Mapped[Json] = mapped_column(server_default="{}")  # environment of its jobs
    preparation: Mapped[JsonList | None]  # a command each VM runs before it takes jobs
    preparation_timeout_s: Mapped[float] = mapped_column(server_default="600")
    retry: Mapped[Json | None]  # the policy of jobs that bring none
    instance_count: Mapped[int] = mapped_column(server_default="1")
    is_elastic: Mapped[bool] = mapped_column(server_default="false")
    elastic_minimum_slots: Mapped[int] = mapped_column(server_default="0")
    elastic_maximum_slots: Mapped[int] = mapped_column(server_default="1")
    elastic_minimum_idle_slots: Mapped[int] = mapped_column(server_default="0")
    elastic_minimum_idle_time_s: Mapped[float] = mapped_column(server_default="0")
    elastic_resize_factor: Mapped[float] = mapped_column(server_default="1")
    elastic_resize_period_s: Mapped[float] = mapped_column(server_default="90")
    # In order, see `remuda.policies`; what the one says that ruled last, until when. A resize period
    # of NULL: its size is looked at with every sweep.
    policies: Mapped[JsonList] = mapped_column(server_default="[]")
    policy_name: Mapped[str | None] = mapped_column(Text)  # None: the pool's own size ruled
    policy_minimum_slots: Mapped[int | None]
    policy_maximum_slots: Mapped[int | None]
    policy_resize_period_s: Mapped[float | None]
    policy_changes_at: Mapped[Timestamp | None]
    sizing_group: Mapped[str | None] = mapped_column(Text)  # with whom it shares a ceiling
    budget_stop: Mapped[str | None] = mapped_column(Text)  # why nothing is placed or launched
    # Whether its work may be preempted (flex), or has hosts of its own (reserved: those of a group).
    scheduling_type: Mapped[str] = mapped_column(Text, server_default="on_demand")
    reserved_group: Mapped[str | None] = mapped_column(Text)
    # What its work needs and only others keep from it, as last decided; those that are flex make room.
    short_slots: Mapped[int] = mapped_column(server_default="0")
    short_since: Mapped[Timestamp | None]
    datacenter: Mapped[str | None] = mapped_column(Text)  # where its machines stand
    heartbeat_s: Mapped[float] = mapped_column(server_default="10")
    stalling_interval_s: Mapped[float] = mapped_column(server_default="120")

    # Health checks: of each VM so often, so long, so many may fail; what it runs for them.
    check_interval_s: Mapped[float] = mapped_column(server_default="60")
    check_timeout_s: Mapped[float] = mapped_column(server_default="20")
    max_check_fails: Mapped[int] = mapped_column(server_default="3")
    min_free_disk_bytes: Mapped[BigInt] = mapped_column(server_default="0")
    health_command: Mapped[JsonList | None]
    max_vm_age_s: Mapped[float | None]  # then a VM drains and is replaced
    max_jobs_per_vm: Mapped[int | None]  # likewise
    # A VM no controller speaks to for so long ends what runs on it, then itself by its command.
    dead_man_s: Mapped[float | None]
    dead_man_command: Mapped[JsonList | None]
    reboot_command: Mapped[JsonList | None]  # how a VM's runner restarts its machine

    # From the first call of the provider to RUNNING, but for the preparation.
    launch_timeout_s: Mapped[float] = mapped_column(server_default="600")
    launch_retries: Mapped[int] = mapped_column(server_default="3")  # of each step of a VM's launch
    max_starting: Mapped[int | None]  # VMs asked for, not yet running
    spawn_interval_s: Mapped[float] = mapped_column(server_default="0")
    last_spawn_at: Mapped[Timestamp | None]

    state: Mapped[str] = mapped_column(Text, server_default="UNSUBMITTED")
    close_now: Mapped[bool] = mapped_column(server_default="false")  # closing without draining
    last_resize_at: Mapped[Timestamp | None]
    decision: Mapped[Json | None]  # the last sizing decision with its inputs
    launch_failures: Mapped[int] = mapped_column(server_default="0")
    paused_until: Mapped[Timestamp | None]
    paused_at: Mapped[Timestamp | None]  # since when it has been pausing, also from time to time
    message: Mapped[str | None] = mapped_column(Text)
    # A rolling update to `image_id` is under way: so many VMs may be missing meanwhile.
    rollout_max_unavailable: Mapped[int | None]
    rollout_at: Mapped[Timestamp | None]
    # Most of its VMs vanished at once: nothing is believed until a second look, or an operator.
    frozen_at: Mapped[Timestamp | None]
    frozen_reason: Mapped[str | None] = mapped_column(Text)
    loss_confirmed_at: Mapped[Timestamp | None]
    reconcile_began_at: Mapped[Timestamp | None]  # a worker took it on
    reconciled_at: Mapped[Timestamp | None]  # when the provider last answered with all it has
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    state_changed_at: Mapped[Created]
    previous_state_changed_at: Mapped[Timestamp | None]
    ended_at: Mapped[Timestamp | None]
    deleted_at: Mapped[Timestamp | None]  # when the provider had confirmed that nothing is left
    # Leases: how many of its VMs one owner may have, what its tags are worth, and for how long
    # after a lease, how often and how long in all a VM is leased again. None: no limit.
    max_vms_per_owner: Mapped[int | None]
    tag_priorities: Mapped[Json] = mapped_column(server_default="{}")
    reuse_opportunity_s: Mapped[float | None]
    reuse_max_count: Mapped[int | None]
    reuse_max_s: Mapped[float | None]
    info: Mapped[Json] = mapped_column(server_default="{}")  # its users' own keys and values
    labels: Mapped[Json] = mapped_column(server_default="{}")  # keys and values to find it by
    shortname: Mapped[str | None] = mapped_column(Text)  # a DNS label; None: its UUID
    constraints: Mapped[Json] = mapped_column(server_default="{}")  # that its VMs must meet
    completion_ttl_s: Mapped[float | None]  # deleted so long after its end; None: it stays
    auto_delete: Mapped[bool] = mapped_column(server_default="false")  # once closed, for room
    # What its VMs have: see pool_resources; whether jobs that do not say wait for the newest.
    resources_version: Mapped[BigInt] = mapped_column(server_default="0")
    wait_for_resources: Mapped[bool] = mapped_column(server_default="false")
    # Of its owner's secrets, those that the owner's jobs are given: {names, prefixes}.
    secrets: Mapped[Json] = mapped_column(server_default="{}")
    profile: Mapped[str | None] = mapped_column(Text)  # the template it was made from
    # What goes with it when it is deleted, and when that was done.
    purge_results: Mapped[bool] = mapped_column(server_default="false")
    purge_resources: Mapped[bool] = mapped_column(server_default="false")
    purged_at: Mapped[Timestamp | None]


class OfferRefusal(Base):
    """An offer that had no capacity or quota for a pool, not to be asked again before it expires.

    It stays, expired, until a launch from the offer succeeds: the next refusal lasts longer.
    """

    __tablename__ = "offer_refusals"
    __table_args__ = (CheckConstraint("times > 0", name="times"),)

    pool_id: Mapped[BigInt] = mapped_column(
        ForeignKey("pools.id", ondelete="CASCADE"), primary_key=True
    )
    offer: Mapped[str] = mapped_column(Text, primary_key=True)  # "": the pool has no offers
    reason: Mapped[str] = mapped_column(Text)
    times: Mapped[int] = mapped_column(server_default="1")  # in a row
    refused_at: Mapped[Created]
    expires_at: Mapped[Timestamp]
