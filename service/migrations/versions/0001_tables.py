"""The service's own tables; a job's changes are told to whoever listens on `job_changes`."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _users_and_orders()
    _jobs()
    _tell_job_changes()


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)


def _instant(name: str, now: sa.Function[datetime] | None = None) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=now, nullable=False)


def _users_and_orders() -> None:
    op.create_table(
        "users",
        _id(),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        _instant("created_at", sa.func.now()),
        sa.UniqueConstraint("email", name="uq_users_email"),
    )
    op.create_table(
        "orders",
        _id(),
        sa.Column(
            "user_id", sa.BigInteger, sa.ForeignKey("users.id", name="fk_orders_user_id"), nullable=False
        ),
        _instant("placed_at"),
    )
    op.create_index("ix_orders_user_id", "orders", ["user_id"])
    op.create_table(
        "order_items",
        _id(),
        sa.Column(
            "order_id",
            sa.BigInteger,
            sa.ForeignKey("orders.id", name="fk_order_items_order_id"),
            nullable=False,
        ),
        sa.Column("product", sa.String(100), nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("price_cents", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_order_items_order_id", "order_items", ["order_id"])
    op.create_table(
        "notifications",
        _id(),
        sa.Column("message", sa.String(500), nullable=False),
        _instant("sent_at", sa.func.now()),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("effects", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("poison", sa.Boolean, nullable=False),
        _instant("created_at", sa.func.clock_timestamp()),
        sa.CheckConstraint("kind IN ('queue', 'background')", name="ck_jobs_kind"),
        sa.CheckConstraint("state IN ('queued', 'running', 'finished', 'dead')", name="ck_jobs_state"),
    )
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"])
    op.create_table(
        "job_effects",
        sa.Column(
            "job_id",
            sa.Uuid,
            sa.ForeignKey("jobs.id", ondelete="CASCADE", name="fk_job_effects_job_id"),
            primary_key=True,
        ),
    )


def _tell_job_changes() -> None:
    op.execute(
        """
        CREATE FUNCTION tell_job_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify('job_changes', NEW.id::text);
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER tell_job_change AFTER UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION tell_job_change()"
    )
