"""Jobs: what is to run, as narrow rows over shared, immutable specs; arrays of them."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, SmallInteger, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.base import Base, BigId, BigInt, Created, Json, JsonList, Timestamp, one_of
from remuda.models.states import JobState, Reason


class JobSpecRow(Base):
    """What a job runs; the jobs of a templated array share one row (`{index}` is filled in late)."""

    __tablename__ = "job_specs"

    id: Mapped[BigId]
    command: Mapped[JsonList]
    environment: Mapped[Json] = mapped_column(server_default="{}")
    inputs: Mapped[JsonList] = mapped_column(
        server_default="[]"
    )  # [{name, url, sha256, size, mode}]
    outputs: Mapped[JsonList] = mapped_column(server_default="[]")  # [{name, optional}]
    output_dir: Mapped[str | None] = mapped_column(Text)
    join_output: Mapped[bool] = mapped_column(server_default="false")
    output_limit_bytes: Mapped[BigInt] = mapped_column(server_default="67108864")


class JobArray(Base):
    """N jobs submitted as one."""

    __tablename__ = "arrays"
    __table_args__ = (CheckConstraint("size > 0", name="size"),)

    id: Mapped[BigId]
    owner_id: Mapped[BigInt] = mapped_column(ForeignKey("owners.id"))
    name: Mapped[str] = mapped_column(Text, server_default="")
    size: Mapped[int]
    mean_wall_s: Mapped[float | None]  # learned; decides how far ahead its jobs are placed
    created_at: Mapped[Created]


class Job(Base):
    """One command to run, until it reaches its one terminal record."""

    __tablename__ = "jobs"
    __table_args__ = (
        one_of("state", JobState),
        one_of("reason", Reason),
        CheckConstraint("cores BETWEEN 1 AND 100000", name="cores"),
        CheckConstraint("memory_bytes > 0", name="memory_bytes"),
        CheckConstraint("walltime_s > 0 AND walltime_s <= 315360000", name="walltime_s"),
        CheckConstraint("priority BETWEEN -1000 AND 1000", name="priority"),
        CheckConstraint("max_attempts BETWEEN 1 AND 1000", name="max_attempts"),
        CheckConstraint("(state = 'TERMINATED') = (ended_at IS NOT NULL)", name="ended"),
        CheckConstraint("(state = 'TERMINATED') = (reason IS NOT NULL)", name="reason_at_end"),
        # The dispatcher's order within a pool; tiny, because only waiting jobs are in it.
        Index(
            "ix_jobs_waiting",
            "pool_id",
            text("priority DESC"),
            "id",
            postgresql_where=text("state = 'NEW'"),
        ),
        Index("ix_jobs_live", "pool_id", postgresql_where=text("state <> 'TERMINATED'")),
        Index(
            "ix_jobs_cancelling",
            "id",
            postgresql_where=text("cancel_requested_at IS NOT NULL AND state <> 'TERMINATED'"),
        ),
        Index("ix_jobs_array_id", "array_id", "array_index"),
        Index(
            "uq_jobs_owner_idempotency_key",
            "owner_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
    )

    id: Mapped[BigId]
    pool_id: Mapped[BigInt] = mapped_column(ForeignKey("pools.id"))
    owner_id: Mapped[BigInt] = mapped_column(ForeignKey("owners.id"))
    spec_id: Mapped[BigInt] = mapped_column(ForeignKey("job_specs.id"))
    array_id: Mapped[BigInt | None] = mapped_column(ForeignKey("arrays.id"))
    array_index: Mapped[int | None]
    name: Mapped[str] = mapped_column(Text, server_default="")
    idempotency_key: Mapped[str | None] = mapped_column(Text)

    cores: Mapped[int] = mapped_column(server_default="1")
    memory_bytes: Mapped[BigInt | None]
    walltime_s: Mapped[float | None]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    max_attempts: Mapped[int] = mapped_column(server_default="1")
    follow: Mapped[bool] = mapped_column(server_default="false")  # push its output as it comes

    state: Mapped[str] = mapped_column(Text, server_default="NEW")
    epoch: Mapped[int] = mapped_column(server_default="0")  # of its latest attempt
    failures: Mapped[int] = mapped_column(server_default="0")  # attempts that failed by themselves
    losses: Mapped[int] = mapped_column(server_default="0")  # attempts lost with their VM
    not_before: Mapped[Timestamp | None]
    cancel_requested_at: Mapped[Timestamp | None]

    submitted_at: Mapped[Created]
    started_at: Mapped[Timestamp | None]  # of the latest attempt
    ended_at: Mapped[Timestamp | None]
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    reason: Mapped[str | None] = mapped_column(Text)
    message: Mapped[str | None] = mapped_column(Text)
