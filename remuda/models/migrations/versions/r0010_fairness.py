"""Share what there is fairly: use of owners, groups, quotas, and waiting jobs by what they ask for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0012"

WAITING = "state = 'NEW' AND unmet = 0 AND NOT held"
# As in remuda.models.jobs, of this revision.
SHAPE = (
    "hashtextextended(cores::text || ' ' || coalesce(memory_bytes, 0)::text || ' ' || gpus::text"
    " || ' ' || coalesce(queue_id, 0)::text || ' ' || coalesce(architecture, '') || ' '"
    " || coalesce(constraints::text, '') || ' ' || sandbox,"
    " coalesce(hash_array_extended(pool_ids, 0), 0))"
)


def upgrade() -> None:
    """Apply the revision."""
    _owners()
    _quotas()
    _usages()
    _jobs()


def _owners() -> None:
    op.add_column("owners", sa.Column("group_id", sa.BigInteger()))
    op.create_foreign_key("fk_owners_group_id", "owners", "owners", ["group_id"], ["id"])
    op.create_check_constraint(op.f("ck_owners_group_id"), "owners", "group_id <> id")
    op.create_index(
        "ix_owners_group_id",
        "owners",
        ["group_id"],
        postgresql_where=sa.text("group_id IS NOT NULL"),
    )


def _quotas() -> None:
    op.create_table(
        "quotas",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("pool_id", sa.BigInteger()),
        sa.Column("max_slots", sa.Integer()),
        sa.Column("max_queued", sa.Integer()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quotas")),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("fk_quotas_owner_id")),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_quotas_pool_id")),
    )
    op.create_check_constraint(op.f("ck_quotas_max_slots"), "quotas", "max_slots >= 0")
    op.create_check_constraint(op.f("ck_quotas_max_queued"), "quotas", "max_queued >= 0")
    op.create_check_constraint(
        op.f("ck_quotas_something"), "quotas", "num_nonnulls(max_slots, max_queued) > 0"
    )
    op.create_index(
        "uq_quotas_owner_id_pool_id",
        "quotas",
        ["owner_id", sa.text("coalesce(pool_id, 0::bigint)")],
        unique=True,
    )


def _usages() -> None:
    op.create_table(
        "usages",
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("slot_s", sa.Double(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner_id", name=op.f("pk_usages")),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("fk_usages_owner_id")),
    )
    op.create_check_constraint(op.f("ck_usages_slot_s"), "usages", "slot_s >= 0")


def _jobs() -> None:
    op.add_column("jobs", sa.Column("queue_id", sa.BigInteger()))
    op.execute(
        """UPDATE jobs SET queue_id = a.id FROM arrays a
           WHERE jobs.state <> 'TERMINATED' AND a.id = jobs.array_id AND a.size >= 100"""
    )
    op.add_column("jobs", sa.Column("shape", sa.BigInteger(), sa.Computed(SHAPE, persisted=True)))
    for name, first in (
        ("ix_jobs_waiting", ["pool_id"]),
        ("ix_jobs_waiting_for_several", []),
    ):
        op.drop_index(name, "jobs")
        op.create_index(
            name,
            "jobs",
            [
                *first,
                "owner_id",
                "shape",
                sa.text("priority DESC"),
                sa.text("displaced DESC"),
                "id",
            ],
            postgresql_where=sa.text(WAITING + ("" if first else " AND pool_ids IS NOT NULL")),
        )
    op.drop_index("ix_jobs_live", "jobs")
    op.create_index(
        "ix_jobs_live",
        "jobs",
        ["pool_id", "owner_id"],
        postgresql_where=sa.text("state <> 'TERMINATED'"),
    )
