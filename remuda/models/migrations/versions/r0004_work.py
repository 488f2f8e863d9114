"""Give jobs their requirements, files, retries, dependencies and calls; pools and VMs what these need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0004"
down_revision = "0003"

_REASONS = (
    "reason IN ('OK', 'NONZERO', 'SIGNALLED', 'WALLTIME', 'OUT_OF_MEMORY', 'CANCELLED', 'LOST',"
    " 'STAGING', 'SUBMISSION', 'DEPENDENCY', 'QUEUE_TIMEOUT')"
)


def _number(name: str, default: int = 0) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer(), server_default=str(default), nullable=False)


def _json(name: str, default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, JSONB(), server_default=default, nullable=default is None)


def _words(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), server_default="", nullable=False)


def _flag(name: str, default: str = "false") -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean(), server_default=default, nullable=False)


def _time(name: str, *, now: bool = False, null: bool = True) -> sa.Column[Any]:
    default = sa.text("now()") if now else None
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=default, nullable=null and not now
    )


def _add(table: str, *columns: sa.Column[Any]) -> None:
    for column in columns:
        op.add_column(table, column)


def _check(table: str, name: str, condition: str) -> None:
    op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition)


def upgrade() -> None:
    """Apply the revision."""
    _specs_and_arrays()
    _jobs()
    _attempts()
    _pools_and_vms()
    _dependencies()
    _calls()
    # The driver's own cursor: the file holds many statements and percent signs.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    driver.execute(Path(__file__).with_name("r0004_triggers.sql").read_text("utf-8"))


def _specs_and_arrays() -> None:
    _add("job_specs", _flag("overwrite", "true"), _words("workdir"))
    _add("job_specs", _json("prologue"), _json("epilogue"))
    _add("arrays", sa.Column("max_running", sa.Integer()), _number("retried"))
    _add("arrays", _number("ended"), _number("succeeded"))
    op.execute("""
        UPDATE arrays SET ended = counted.ended, succeeded = counted.succeeded
        FROM (SELECT array_id, count(*) AS ended, count(*) FILTER (WHERE reason = 'OK') AS succeeded
              FROM jobs WHERE state = 'TERMINATED' GROUP BY 1) AS counted
        WHERE counted.array_id = arrays.id AND counted.ended <= arrays.size""")
    _check("arrays", "max_running", "max_running > 0")
    op.create_index(
        "ix_arrays_limited",
        "arrays",
        ["id"],
        postgresql_where=sa.text("max_running IS NOT NULL AND ended < size"),
    )
    _check("arrays", "counts", "succeeded >= 0 AND succeeded <= ended AND ended <= size")


def _jobs() -> None:
    _add(
        "jobs",
        sa.Column("pool_ids", ARRAY(sa.BigInteger())),
        _json("params"),
        _json("retry"),
        _number("gpus"),
        sa.Column("architecture", sa.Text()),
        _json("constraints"),
        _words("sandbox"),
        _json("tags", "[]"),
        _flag("pin_cpus"),
        sa.Column("max_queue_s", sa.Double()),
        _number("unmet"),
        _flag("held"),
        _json("read_offsets"),
    )
    op.drop_constraint("ck_jobs_reason", "jobs")
    _check("jobs", "reason", _REASONS)
    _check("jobs", "gpus", "gpus BETWEEN 0 AND 1024")
    _check("jobs", "max_queue_s", "max_queue_s > 0 AND max_queue_s <= 315360000")
    _check("jobs", "unmet", "unmet >= 0")
    op.drop_index("ix_jobs_waiting", "jobs")
    op.create_index(
        "ix_jobs_waiting",
        "jobs",
        ["pool_id", sa.text("priority DESC"), "id"],
        postgresql_where=sa.text("state = 'NEW' AND unmet = 0 AND NOT held"),
    )
    op.create_index(
        "ix_jobs_blocked",
        "jobs",
        ["id"],
        postgresql_where=sa.text("state = 'NEW' AND unmet > 0"),
    )
    op.create_index(
        "ix_jobs_waiting_for_several",
        "jobs",
        [sa.text("priority DESC"), "id"],
        postgresql_where=sa.text(
            "state = 'NEW' AND unmet = 0 AND NOT held AND pool_ids IS NOT NULL"
        ),
    )
    op.create_index(
        "ix_jobs_queue_deadline",
        "jobs",
        ["submitted_at"],
        postgresql_where=sa.text("state = 'NEW' AND max_queue_s IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_pool_ids",
        "jobs",
        ["pool_ids"],
        postgresql_using="gin",
        postgresql_where=sa.text("state = 'NEW' AND pool_ids IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_tags",
        "jobs",
        ["tags"],
        postgresql_using="gin",
        postgresql_where=sa.text("tags <> '[]'::jsonb"),
    )


def _attempts() -> None:
    _add(
        "attempts",
        _number("gpus"),
        sa.Column("peak_memory_bytes", sa.BigInteger()),
        sa.Column("io_read_bytes", sa.BigInteger()),
        sa.Column("io_write_bytes", sa.BigInteger()),
    )
    op.drop_constraint("ck_attempts_reason", "attempts")
    _check("attempts", "reason", _REASONS)
    _add("attempt_outputs", _flag("executable"), sa.Column("sha256", sa.Text()))


def _pools_and_vms() -> None:
    _add(
        "pools",
        _number("gpus_per_vm"),
        _json("constants", "{}"),
        _json("preparation"),
        sa.Column("preparation_timeout_s", sa.Double(), server_default="600", nullable=False),
        _json("retry"),
    )
    _check("pools", "gpus_per_vm", "gpus_per_vm BETWEEN 0 AND 1024")
    _check(
        "pools",
        "preparation_timeout_s",
        "preparation_timeout_s > 0 AND preparation_timeout_s <= 86400",
    )
    _add(
        "vms",
        _number("spawn_calls"),
        _number("gpus"),
        _json("facts", "{}"),
        _json("preparation"),
        sa.Column("bound_owner_id", sa.BigInteger()),
        sa.Column("bound_sandbox", sa.Text()),
    )
    op.create_foreign_key("fk_vms_bound_owner_id", "vms", "owners", ["bound_owner_id"], ["id"])


def _dependencies() -> None:
    op.create_table(
        "dependencies",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("parent_id", sa.BigInteger()),
        sa.Column("parent_array_id", sa.BigInteger()),
        sa.Column("condition", sa.Text(), server_default="success", nullable=False),
        sa.Column("quantifier", sa.Text(), server_default="all", nullable=False),
        _flag("met"),
        sa.CheckConstraint(
            "(parent_id IS NULL) <> (parent_array_id IS NULL)",
            name=op.f("ck_dependencies_parent"),
        ),
        sa.CheckConstraint(
            "condition IN ('success', 'failure', 'end')", name=op.f("ck_dependencies_condition")
        ),
        sa.CheckConstraint("quantifier IN ('all', 'any')", name=op.f("ck_dependencies_quantifier")),
        sa.CheckConstraint("parent_id <> job_id", name=op.f("ck_dependencies_itself")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_dependencies_job_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["jobs.id"], name="fk_dependencies_parent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["parent_array_id"],
            ["arrays.id"],
            name="fk_dependencies_parent_array_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_dependencies"),
    )
    op.create_index("ix_dependencies_job_id", "dependencies", ["job_id"])
    for column in ("parent_id", "parent_array_id"):
        op.create_index(
            f"ix_dependencies_{column}",
            "dependencies",
            [column],
            postgresql_where=sa.text(f"NOT met AND {column} IS NOT NULL"),
        )


def _calls() -> None:
    op.create_table(
        "calls",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("verb", sa.Text(), nullable=False),
        _json("arguments", "{}"),
        _time("created_at", now=True),
        _time("expires_at", null=False),
        _time("claimed_at"),
        _time("answered_at"),
        _json("answer"),
        _json("error"),
        sa.CheckConstraint(
            "verb IN ('peek', 'files', 'signal', 'suspend', 'resume', 'extend')",
            name=op.f("ck_calls_verb"),
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_calls_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_calls"),
    )
    op.create_index(
        "ix_calls_open", "calls", ["id"], postgresql_where=sa.text("answered_at IS NULL")
    )
    op.create_index("ix_calls_expires_at", "calls", ["expires_at"])
