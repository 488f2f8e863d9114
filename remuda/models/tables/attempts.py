"""Attempts: every try of a job on a VM, its outputs, and the events that tell all transitions."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, LargeBinary, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.sql import sql_list
from remuda.models.states import LIVE_ATTEMPT, AttemptState, Reason
from remuda.models.tables.base import (
    Base,
    BigId,
    BigInt,
    Created,
    Json,
    Timestamp,
    in_order_of_time,
    one_of,
)


class Attempt(Base):
    """One try of a job on one VM; at most one per job is live."""

    __tablename__ = "attempts"
    __table_args__ = (
        one_of("state", AttemptState),
        one_of("reason", Reason),
        Index("uq_attempts_job_id_epoch", "job_id", "epoch", unique=True),
        Index(
            "uq_attempts_job_live",
            "job_id",
            unique=True,
            postgresql_where=text(f"state IN ({sql_list(LIVE_ATTEMPT)})"),
        ),
        Index(
            "ix_attempts_vm_live",
            "vm_id",
            "id",
            postgresql_where=text(f"state IN ({sql_list(LIVE_ATTEMPT)})"),
        ),
        Index("ix_attempts_vm_id", "vm_id"),
        in_order_of_time("attempts", "ended_at"),
    )

    id: Mapped[BigId]
    job_id: Mapped[BigInt] = mapped_column(ForeignKey("jobs.id"))
    epoch: Mapped[int]
    vm_id: Mapped[BigInt] = mapped_column(ForeignKey("vms.id"))
    lease_id: Mapped[BigInt] = mapped_column(ForeignKey("leases.id"))
    state: Mapped[str] = mapped_column(Text, server_default="PLACED")
    cores: Mapped[int]
    memory_bytes: Mapped[BigInt | None]
    gpus: Mapped[int] = mapped_column(server_default="0")
    expected_wall_s: Mapped[float | None]

    placed_at: Mapped[Created]
    started_at: Mapped[Timestamp | None]
    ended_at: Mapped[Timestamp | None]
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    reason: Mapped[str | None] = mapped_column(Text)
    message: Mapped[str | None] = mapped_column(Text)
    wall_s: Mapped[float | None]
    user_s: Mapped[float | None]
    system_s: Mapped[float | None]
    max_rss_bytes: Mapped[BigInt | None]
    peak_memory_bytes: Mapped[BigInt | None]  # of all its processes together, where that is known
    io_read_bytes: Mapped[BigInt | None]
    io_write_bytes: Mapped[BigInt | None]
    # While EXITED: what get_results still has to fetch, {"files": {name: size}, "streams": [name],
    # "cut": {stream: [cut_from, cut_to, written_bytes]}}.
    pending: Mapped[Json | None]


class AttemptOutput(Base):
    """A stream or file that an attempt left: small ones in the row, others at a URL."""

    __tablename__ = "attempt_outputs"
    __table_args__ = (
        CheckConstraint("kind IN ('stream', 'file')", name="kind"),
        CheckConstraint("(data IS NULL) <> (url IS NULL)", name="data_or_url"),
        CheckConstraint(
            "num_nulls(cut_from, cut_to, written_bytes) = 3"
            " OR (0 <= cut_from AND cut_from <= cut_to AND cut_to <= written_bytes)",
            name="cut",
        ),
    )

    attempt_id: Mapped[BigInt] = mapped_column(
        ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True
    )
    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    size: Mapped[BigInt]
    data: Mapped[bytes | None] = mapped_column(LargeBinary)
    url: Mapped[str | None] = mapped_column(Text)
    executable: Mapped[bool] = mapped_column(server_default="false")
    sha256: Mapped[str | None] = mapped_column(Text)
    # Of a stream past its limit: where the missing bytes began and ended, of how many in all.
    cut_from: Mapped[BigInt | None]
    cut_to: Mapped[BigInt | None]
    written_bytes: Mapped[BigInt | None]


class OutputChunk(Base):
    """Output of a followed attempt as it comes; removed when the attempt's record is complete."""

    __tablename__ = "output_chunks"

    attempt_id: Mapped[BigInt] = mapped_column(
        ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True
    )
    stream: Mapped[str] = mapped_column(Text, primary_key=True)
    at_byte: Mapped[BigInt] = mapped_column(primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)
    cut_from: Mapped[BigInt | None]  # where bytes begin that are missing before this


class Event(Base):
    """One transition of a job, attempt, VM, image or pool; written by the database's triggers."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_kind_subject_id", "kind", "subject_id", "id"),)

    id: Mapped[BigId]
    at: Mapped[Created]
    kind: Mapped[str] = mapped_column(Text)
    subject_id: Mapped[BigInt]
    from_state: Mapped[str | None] = mapped_column(Text)
    to_state: Mapped[str] = mapped_column(Text)
    detail: Mapped[Json | None]


class Transition(Base):
    """The edges of `remuda.models.states`, where the triggers can see them."""

    __tablename__ = "transitions"

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    old: Mapped[str] = mapped_column(Text, primary_key=True)
    new: Mapped[str] = mapped_column(Text, primary_key=True)


class Sweep(Base):
    """When each beat sweep last ran, and since when it has run without a gap."""

    __tablename__ = "sweeps"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    last_run_at: Mapped[Timestamp]
    since: Mapped[Timestamp]
