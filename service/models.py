"""The tables."""

import enum
import uuid
from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Enum, ForeignKey, Identity, MetaData, String, func
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

EMAIL_LENGTH = 254  # RFC 5321's limit on a forward path, less its angle brackets
NAME_LENGTH = 100
MESSAGE_LENGTH = 500


class Base(AsyncAttrs, DeclarativeBase):
    """Base of all tables; constraints get names, so that migrations can speak of them."""

    type_annotation_map = {int: BigInteger, datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's own name
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )


class User(Base):
    """Somebody who orders."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(String(EMAIL_LENGTH), unique=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    orders: Mapped[list["Order"]] = relationship(back_populates="user", order_by="Order.id")


class Order(Base):
    """What a user ordered at one time."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), index=True)
    placed_at: Mapped[datetime]

    user: Mapped[User] = relationship(back_populates="orders")
    items: Mapped[list["OrderItem"]] = relationship(order_by="OrderItem.id")


class OrderItem(Base):
    """One line of an order."""

    __tablename__ = "order_items"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), index=True)
    product: Mapped[str] = mapped_column(String(NAME_LENGTH))
    quantity: Mapped[int]
    price_cents: Mapped[int]


class Notification(Base):
    """A message sent: the side effect that happens after a response."""

    __tablename__ = "notifications"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    message: Mapped[str] = mapped_column(String(MESSAGE_LENGTH))
    sent_at: Mapped[datetime] = mapped_column(server_default=func.now())


class JobKind(enum.StrEnum):
    """Who runs the job: a job worker, or the service's own worker after its response."""

    QUEUE = "queue"
    BACKGROUND = "background"


class JobState(enum.StrEnum):
    """Where a job is; `dead` is a dead letter."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    DEAD = "dead"


def _text(kinds: type[enum.StrEnum], name: str) -> Enum:
    """Keep an enumeration as text with a check: a later member needs no ALTER TYPE."""
    values = [kind.value for kind in kinds]
    return Enum(
        kinds,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=lambda _: values,
    )


class Job(Base):
    """A piece of work and how far it is: what clients see, whatever carries it out."""

    __tablename__ = "jobs"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    kind: Mapped[JobKind] = mapped_column(_text(JobKind, "kind"))
    state: Mapped[JobState] = mapped_column(_text(JobState, "state"), default=JobState.QUEUED)
    attempts: Mapped[int] = mapped_column(default=0)
    effects: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float]
    poison: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp(), index=True)


class JobEffect(Base):
    """The unique key that lets a job's effect take place once, however often the job runs."""

    __tablename__ = "job_effects"

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(Job.id, ondelete="CASCADE"), primary_key=True)
