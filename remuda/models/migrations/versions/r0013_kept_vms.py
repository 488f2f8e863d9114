"""Keep VMs for leases that would wait for ever; give owners quotas of VMs by pool, and groups."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0011"


def upgrade() -> None:
    """Apply the revision."""
    op.add_column("lease_requests", sa.Column("vm_id", sa.BigInteger()))
    op.create_foreign_key(
        "fk_lease_requests_vm_id", "lease_requests", "vms", ["vm_id"], ["id"], ondelete="SET NULL"
    )
    op.create_index(
        "ix_lease_requests_vm_id",
        "lease_requests",
        ["vm_id"],
        postgresql_where=sa.text("vm_id IS NOT NULL"),
    )
    op.add_column("quotas", sa.Column("max_vms", sa.Integer()))
    op.create_check_constraint(op.f("ck_quotas_max_vms"), "quotas", "max_vms >= 0")
    op.drop_constraint(op.f("ck_quotas_something"), "quotas")
    op.create_check_constraint(
        op.f("ck_quotas_something"), "quotas", "num_nonnulls(max_slots, max_queued, max_vms) > 0"
    )
