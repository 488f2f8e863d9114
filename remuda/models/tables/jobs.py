"""Jobs: what is to run, as narrow rows over shared, immutable specs; arrays of them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    ForeignKey,
    Index,
    SmallInteger,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from remuda.models.states import JobState, Reason
from remuda.models.tables.base import (
    Base,
    BigId,
    BigInt,
    Created,
    Json,
    JsonList,
    Timestamp,
    in_order_of_time,
    one_of,
)

# What a job asks for, in one number: jobs of a shape fit the same places, so that one of them tells
# of all. A generated column may use nothing but immutable functions.
SHAPE = (
    "hashtextextended(cores::text || ' ' || coalesce(memory_bytes, 0)::text || ' ' || gpus::text"
    " || ' ' || coalesce(queue_id, 0)::text || ' ' || coalesce(architecture, '') || ' '"
    " || coalesce(constraints::text, '') || ' ' || sandbox,"
    " coalesce(hash_array_extended(pool_ids, 0), 0))"
)


class JobSpecRow(Base):
    """What a job runs; the jobs of a templated array share one row (`{index}` is filled in late)."""

    __tablename__ = "job_specs"

    id: Mapped[BigId]
    command: Mapped[JsonList]
    environment: Mapped[Json] = mapped_column(server_default="{}")
    # [{name, url, sha256, size, mode}]; what was given by URL has no sha256 and no size
    inputs: Mapped[JsonList] = mapped_column(server_default="[]")
    # [{name, optional, local?, url?}]; a name may be a pattern, a directory ("d/"), or "**"
    outputs: Mapped[JsonList] = mapped_column(server_default="[]")
    output_dir: Mapped[str | None] = mapped_column(Text)
    overwrite: Mapped[bool] = mapped_column(server_default="true")
    workdir: Mapped[str] = mapped_column(Text, server_default="")  # inside the sandbox
    prologue: Mapped[JsonList | None]
    epilogue: Mapped[JsonList | None]
    join_output: Mapped[bool] = mapped_column(server_default="false")
    output_limit_bytes: Mapped[BigInt] = mapped_column(server_default="67108864")
    wait_for_resources: Mapped[bool | None]  # of the pool; None: as the pool says


class JobArray(Base):
    """N jobs submitted as one."""

    __tablename__ = "arrays"
    __table_args__ = (
        CheckConstraint("size > 0", name="size"),
        CheckConstraint("max_running > 0", name="max_running"),
        Index(
            "ix_arrays_limited",
            "id",
            postgresql_where=text("max_running IS NOT NULL AND ended < size"),
        ),
        CheckConstraint("succeeded >= 0 AND succeeded <= ended AND ended <= size", name="counts"),
    )

    id: Mapped[BigId]
    owner_id: Mapped[BigInt] = mapped_column(ForeignKey("owners.id"))
    name: Mapped[str] = mapped_column(Text, server_default="")
    size: Mapped[int]
    max_running: Mapped[int | None]  # of its jobs at once
    retried: Mapped[int] = mapped_column(server_default="0")  # retries of its jobs after failures
    ended: Mapped[int] = mapped_column(server_default="0")  # counted by a trigger, like succeeded
    succeeded: Mapped[int] = mapped_column(server_default="0")
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
        CheckConstraint("gpus BETWEEN 0 AND 1024", name="gpus"),
        CheckConstraint("max_queue_s > 0 AND max_queue_s <= 315360000", name="max_queue_s"),
        CheckConstraint("unmet >= 0", name="unmet"),
        CheckConstraint("(state = 'TERMINATED') = (ended_at IS NOT NULL)", name="ended"),
        CheckConstraint("(state = 'TERMINATED') = (reason IS NOT NULL)", name="reason_at_end"),
        # The dispatcher's: the next of each owner and shape in a pool; tiny, as only waiting jobs are
        # in it.
        Index(
            "ix_jobs_waiting",
            "pool_id",
            "owner_id",
            "shape",
            text("priority DESC"),
            text("displaced DESC"),
            "id",
            postgresql_where=text("state = 'NEW' AND unmet = 0 AND NOT held"),
        ),
        # For people: the next of all, or of a pool. By expressions, so that it is of no use to the
        # dispatcher's queries, which must not be planned by it.
        Index(
            "ix_jobs_next",
            text("(- priority)"),
            text("(NOT displaced)"),
            "id",
            postgresql_include=["pool_id"],
            postgresql_where=text("state = 'NEW' AND unmet = 0 AND NOT held"),
        ),
        # Waiting for others: what the sweep looks at.
        Index("ix_jobs_blocked", "id", postgresql_where=text("state = 'NEW' AND unmet > 0")),
        # The same over all pools, of the jobs that more than one may take.
        Index(
            "ix_jobs_waiting_for_several",
            "owner_id",
            "shape",
            text("priority DESC"),
            text("displaced DESC"),
            "id",
            postgresql_where=text(
                "state = 'NEW' AND unmet = 0 AND NOT held AND pool_ids IS NOT NULL"
            ),
        ),
        Index(
            "ix_jobs_queue_deadline",
            "submitted_at",
            postgresql_where=text("state = 'NEW' AND max_queue_s IS NOT NULL"),
        ),
        # Jobs that are to be tried again: when the next is due.
        Index(
            "ix_jobs_not_before",
            "not_before",
            postgresql_where=text("state = 'NEW' AND not_before IS NOT NULL"),
        ),
        # Jobs that other pools than `pool_id` may take, too.
        Index(
            "ix_jobs_pool_ids",
            "pool_ids",
            postgresql_using="gin",
            postgresql_where=text("state = 'NEW' AND pool_ids IS NOT NULL"),
        ),
        Index(
            "ix_jobs_tags",
            "tags",
            postgresql_using="gin",
            postgresql_where=text("tags <> '[]'::jsonb"),
        ),
        Index(
            "ix_jobs_live",
            "pool_id",
            "owner_id",
            postgresql_where=text("state <> 'TERMINATED'"),
        ),
        Index(
            "ix_jobs_cancelling",
            "id",
            postgresql_where=text("cancel_requested_at IS NOT NULL AND state <> 'TERMINATED'"),
        ),
        Index("ix_jobs_array_id", "array_id", "array_index"),
        in_order_of_time("jobs", "ended_at"),
        Index(
            "uq_jobs_owner_idempotency_key",
            "owner_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
    )

    id: Mapped[BigId]
    # Where it runs or, while it waits, the pool it prefers; `pool_ids`: all it may go to, in order.
    pool_id: Mapped[BigInt] = mapped_column(ForeignKey("pools.id"))
    pool_ids: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    owner_id: Mapped[BigInt] = mapped_column(ForeignKey("owners.id"))
    spec_id: Mapped[BigInt] = mapped_column(ForeignKey("job_specs.id"))
    array_id: Mapped[BigInt | None] = mapped_column(ForeignKey("arrays.id"))
    array_index: Mapped[int | None]
    params: Mapped[Json | None]  # fills {name} in its spec, as array_index fills {index}
    name: Mapped[str] = mapped_column(Text, server_default="")
    idempotency_key: Mapped[str | None] = mapped_column(Text)

    cores: Mapped[int] = mapped_column(server_default="1")
    memory_bytes: Mapped[BigInt | None]
    walltime_s: Mapped[float | None]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    max_attempts: Mapped[int] = mapped_column(server_default="1")
    retry: Mapped[Json | None]  # a policy of remuda.workers.retry; none: the pool's
    gpus: Mapped[int] = mapped_column(server_default="0")
    architecture: Mapped[str | None] = mapped_column(Text)
    constraints: Mapped[Json | None]  # what the VM's facts must meet
    sandbox: Mapped[str] = mapped_column(Text, server_default="")
    tags: Mapped[JsonList] = mapped_column(server_default="[]")
    pin_cpus: Mapped[bool] = mapped_column(server_default="false")
    max_queue_s: Mapped[float | None]  # it is ended if it has not started by then
    follow: Mapped[bool] = mapped_column(server_default="false")  # push its output as it comes

    state: Mapped[str] = mapped_column(Text, server_default="NEW")
    epoch: Mapped[int] = mapped_column(server_default="0")  # of its latest attempt
    failures: Mapped[int] = mapped_column(server_default="0")  # attempts that failed by themselves
    losses: Mapped[int] = mapped_column(server_default="0")  # attempts lost with their VM
    unmet: Mapped[int] = mapped_column(server_default="0")  # dependencies it still waits for
    held: Mapped[bool] = mapped_column(server_default="false")  # suspended before it was placed
    displaced: Mapped[bool] = mapped_column(server_default="false")  # lost its VM: goes first
    not_before: Mapped[Timestamp | None]
    cancel_requested_at: Mapped[Timestamp | None]

    submitted_at: Mapped[Created]
    started_at: Mapped[Timestamp | None]  # of the latest attempt
    ended_at: Mapped[Timestamp | None]
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    reason: Mapped[str | None] = mapped_column(Text)
    message: Mapped[str | None] = mapped_column(Text)
    read_offsets: Mapped[Json | None]  # how far "fresh" output was read, by stream
    # Its array, if that is large: its jobs have a shape of their own. See SHAPE.
    queue_id: Mapped[BigInt | None]
    shape: Mapped[BigInt | None] = mapped_column(Computed(SHAPE, persisted=True))


class Dependency(Base):
    """A job waits for a job, or for those of an array, to end in a certain way."""

    __tablename__ = "dependencies"
    __table_args__ = (
        CheckConstraint("(parent_id IS NULL) <> (parent_array_id IS NULL)", name="parent"),
        CheckConstraint("condition IN ('success', 'failure', 'end')", name="condition"),
        CheckConstraint("quantifier IN ('all', 'any')", name="quantifier"),
        CheckConstraint("parent_id <> job_id", name="itself"),
        Index("ix_dependencies_job_id", "job_id"),
        Index(
            "ix_dependencies_parent_id",
            "parent_id",
            postgresql_where=text("NOT met AND parent_id IS NOT NULL"),
        ),
        Index(
            "ix_dependencies_parent_array_id",
            "parent_array_id",
            postgresql_where=text("NOT met AND parent_array_id IS NOT NULL"),
        ),
    )

    id: Mapped[BigId]
    job_id: Mapped[BigInt] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    parent_id: Mapped[BigInt | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    parent_array_id: Mapped[BigInt | None] = mapped_column(
        ForeignKey("arrays.id", ondelete="CASCADE")
    )
    condition: Mapped[str] = mapped_column(Text, server_default="success")
    quantifier: Mapped[str] = mapped_column(Text, server_default="all")  # of an array's jobs
    met: Mapped[bool] = mapped_column(server_default="false")


class Call(Base):
    """A question to the VM a job runs on, and its answer: what cannot wait for a state to change."""

    __tablename__ = "calls"
    __table_args__ = (
        CheckConstraint(
            "verb IN ('peek', 'files', 'signal', 'suspend', 'resume', 'extend')", name="verb"
        ),
        Index("ix_calls_open", "id", postgresql_where=text("answered_at IS NULL")),
        Index("ix_calls_expires_at", "expires_at"),
    )

    id: Mapped[BigId]
    job_id: Mapped[BigInt] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    verb: Mapped[str] = mapped_column(Text)
    arguments: Mapped[Json] = mapped_column(server_default="{}")
    created_at: Mapped[Created]
    expires_at: Mapped[Timestamp]  # nobody waits any more
    claimed_at: Mapped[Timestamp | None]
    answered_at: Mapped[Timestamp | None]
    answer: Mapped[Json | None]
    error: Mapped[Json | None]  # {"kind": name of the error's class, "message", "hint"}
