"""Create specs, arrays, jobs, attempts and what they leave."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"

_REASONS = (
    "reason IN ('OK', 'NONZERO', 'SIGNALLED', 'WALLTIME', 'OUT_OF_MEMORY', 'CANCELLED', 'LOST',"
    " 'STAGING', 'SUBMISSION', 'DEPENDENCY')"
)
_LIVE_ATTEMPT = "state IN ('PLACED', 'STARTED', 'EXITED')"


def _id() -> sa.Column[Any]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False)


def _time(name: str, *, now: bool = False) -> sa.Column[Any]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)


def upgrade() -> None:
    """Apply the revision."""
    _specs_and_arrays()
    _jobs()
    _attempts()
    _outputs()


def _specs_and_arrays() -> None:
    op.create_table(
        "job_specs",
        _id(),
        sa.Column("command", JSONB(), nullable=False),
        sa.Column("environment", JSONB(), server_default="{}", nullable=False),
        sa.Column("inputs", JSONB(), server_default="[]", nullable=False),
        sa.Column("outputs", JSONB(), server_default="[]", nullable=False),
        sa.Column("output_dir", sa.Text()),
        sa.Column("join_output", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("output_limit_bytes", sa.BigInteger(), server_default="67108864", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_job_specs"),
    )
    op.create_table(
        "arrays",
        _id(),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("mean_wall_s", sa.Double()),
        _time("created_at", now=True),
        sa.CheckConstraint("size > 0", name=op.f("ck_arrays_size")),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_arrays_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_arrays"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        _id(),
        sa.Column("pool_id", sa.BigInteger(), nullable=False),
        sa.Column("owner_id", sa.BigInteger(), nullable=False),
        sa.Column("spec_id", sa.BigInteger(), nullable=False),
        sa.Column("array_id", sa.BigInteger()),
        sa.Column("array_index", sa.Integer()),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("cores", sa.Integer(), server_default="1", nullable=False),
        sa.Column("memory_bytes", sa.BigInteger()),
        sa.Column("walltime_s", sa.Double()),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default="1", nullable=False),
        sa.Column("follow", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("state", sa.Text(), server_default="NEW", nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("losses", sa.Integer(), server_default="0", nullable=False),
        _time("not_before"),
        _time("cancel_requested_at"),
        _time("submitted_at", now=True),
        _time("started_at"),
        _time("ended_at"),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("signal", sa.Integer()),
        sa.Column("reason", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.CheckConstraint(
            "state IN ('NEW', 'SUBMITTED', 'RUNNING', 'STOPPED', 'UNKNOWN', 'TERMINATING',"
            " 'TERMINATED')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint(_REASONS, name=op.f("ck_jobs_reason")),
        sa.CheckConstraint("cores BETWEEN 1 AND 100000", name=op.f("ck_jobs_cores")),
        sa.CheckConstraint("memory_bytes > 0", name=op.f("ck_jobs_memory_bytes")),
        sa.CheckConstraint(
            "walltime_s > 0 AND walltime_s <= 315360000", name=op.f("ck_jobs_walltime_s")
        ),
        sa.CheckConstraint("priority BETWEEN -1000 AND 1000", name=op.f("ck_jobs_priority")),
        sa.CheckConstraint("max_attempts BETWEEN 1 AND 1000", name=op.f("ck_jobs_max_attempts")),
        sa.CheckConstraint(
            "(state = 'TERMINATED') = (ended_at IS NOT NULL)", name=op.f("ck_jobs_ended")
        ),
        sa.CheckConstraint(
            "(state = 'TERMINATED') = (reason IS NOT NULL)", name=op.f("ck_jobs_reason_at_end")
        ),
        sa.ForeignKeyConstraint(["array_id"], ["arrays.id"], name="fk_jobs_array_id"),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_jobs_owner_id"),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name="fk_jobs_pool_id"),
        sa.ForeignKeyConstraint(["spec_id"], ["job_specs.id"], name="fk_jobs_spec_id"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_array_id", "jobs", ["array_id", "array_index"])
    op.create_index(
        "ix_jobs_waiting",
        "jobs",
        ["pool_id", sa.text("priority DESC"), "id"],
        postgresql_where=sa.text("state = 'NEW'"),
    )
    op.create_index(
        "ix_jobs_live", "jobs", ["pool_id"], postgresql_where=sa.text("state <> 'TERMINATED'")
    )
    op.create_index(
        "ix_jobs_cancelling",
        "jobs",
        ["id"],
        postgresql_where=sa.text("cancel_requested_at IS NOT NULL AND state <> 'TERMINATED'"),
    )
    op.create_index(
        "uq_jobs_owner_idempotency_key",
        "jobs",
        ["owner_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )


def _attempts() -> None:
    op.create_table(
        "attempts",
        _id(),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("vm_id", sa.BigInteger(), nullable=False),
        sa.Column("lease_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default="PLACED", nullable=False),
        sa.Column("cores", sa.Integer(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger()),
        sa.Column("expected_wall_s", sa.Double()),
        _time("placed_at", now=True),
        _time("started_at"),
        _time("ended_at"),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("signal", sa.Integer()),
        sa.Column("reason", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.Column("wall_s", sa.Double()),
        sa.Column("user_s", sa.Double()),
        sa.Column("system_s", sa.Double()),
        sa.Column("max_rss_bytes", sa.BigInteger()),
        sa.Column("pending", JSONB()),
        sa.CheckConstraint(
            "state IN ('PLACED', 'STARTED', 'EXITED', 'COLLECTED', 'LOST', 'CANCELLED', 'FAILED')",
            name=op.f("ck_attempts_state"),
        ),
        sa.CheckConstraint(_REASONS, name=op.f("ck_attempts_reason")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_attempts_job_id"),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name="fk_attempts_lease_id"),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_attempts_vm_id"),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
    )
    op.create_index("ix_attempts_vm_id", "attempts", ["vm_id"])
    op.create_index(
        "ix_attempts_vm_live", "attempts", ["vm_id", "id"], postgresql_where=sa.text(_LIVE_ATTEMPT)
    )
    op.create_index("uq_attempts_job_id_epoch", "attempts", ["job_id", "epoch"], unique=True)
    op.create_index(
        "uq_attempts_job_live",
        "attempts",
        ["job_id"],
        unique=True,
        postgresql_where=sa.text(_LIVE_ATTEMPT),
    )


def _outputs() -> None:
    op.create_table(
        "attempt_outputs",
        sa.Column("attempt_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary()),
        sa.Column("url", sa.Text()),
        sa.CheckConstraint("kind IN ('stream', 'file')", name=op.f("ck_attempt_outputs_kind")),
        sa.CheckConstraint(
            "(data IS NULL) <> (url IS NULL)", name=op.f("ck_attempt_outputs_data_or_url")
        ),
        sa.ForeignKeyConstraint(
            ["attempt_id"],
            ["attempts.id"],
            name="fk_attempt_outputs_attempt_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("attempt_id", "kind", "name", name="pk_attempt_outputs"),
    )
    op.create_table(
        "output_chunks",
        sa.Column("attempt_id", sa.BigInteger(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("at_byte", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"],
            ["attempts.id"],
            name="fk_output_chunks_attempt_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("attempt_id", "stream", "at_byte", name="pk_output_chunks"),
    )
