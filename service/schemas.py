"""What the service takes and answers, as JSON."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from service.models import EMAIL_LENGTH, MESSAGE_LENGTH, NAME_LENGTH, Job, JobKind, JobState

# PostgreSQL's text cannot hold NUL.
_WITHOUT_NUL = r"^[^\x00]*$"
_EMAIL = r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$"


class _FromRow(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class _Strict(BaseModel):
    """A body; what it does not know, or would have to guess, is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Problem(BaseModel):
    """Why a request was not carried out."""

    detail: str


class Waited(BaseModel):
    """How long the route waited, in seconds."""

    seconds: float


class UserView(_FromRow):
    """A user."""

    id: int
    email: str
    name: str
    created_at: datetime


class NewUser(_Strict):
    """A user to create."""

    email: Annotated[str, Field(max_length=EMAIL_LENGTH, pattern=_EMAIL)]
    name: Annotated[str, Field(min_length=1, max_length=NAME_LENGTH, pattern=_WITHOUT_NUL)]


class OrderItemView(_FromRow):
    """One line of an order."""

    product: str
    quantity: int
    price_cents: int


class OrderView(_FromRow):
    """An order with its items."""

    id: int
    placed_at: datetime
    items: list[OrderItemView]


class Orders(BaseModel):
    """A user's orders."""

    user_id: int
    orders: list[OrderView]


class Profile(BaseModel):
    """What the upstream service knows of a user."""

    user_id: int
    plan: str


class Preferences(BaseModel):
    """How a user wants to be served."""

    language: str


class Recommendations(BaseModel):
    """What a user may like."""

    recommended: list[str]


class GatheredProfile(Profile, Preferences, Recommendations):
    """What three upstream calls know of a user."""


class Computed(BaseModel):
    """The result of a computation."""

    result: int


class NewNotification(_Strict):
    """A message to send after the response."""

    message: Annotated[str, Field(min_length=1, max_length=MESSAGE_LENGTH, pattern=_WITHOUT_NUL)] = "hello"
    seconds: Annotated[
        float, Field(ge=0, le=5, allow_inf_nan=False, description="how long sending takes")
    ] = 0.05


class Accepted(BaseModel):
    """The work will be done after the response."""

    accepted: bool = True


class NewJob(_Strict):
    """Work to do after the response."""

    seconds: Annotated[
        float, Field(ge=0, le=5, allow_inf_nan=False, description="how long the work takes")
    ] = 0.05
    poison: Annotated[bool, Field(description="whether each attempt fails")] = False


class JobTaken(BaseModel):
    """The job's id; ask for it at `/jobs/{job_id}`."""

    job_id: UUID


class JobView(BaseModel):
    """A job and how far it is."""

    job_id: UUID
    kind: JobKind
    state: JobState
    attempts: int
    effects: int

    @classmethod
    def of(cls, job: Job) -> "JobView":
        """Show a row of `jobs`."""
        return cls(job_id=job.id, kind=job.kind, state=job.state, attempts=job.attempts, effects=job.effects)


class Health(BaseModel):
    """This worker's event loop turns."""

    alive: bool = True


class Readiness(BaseModel):
    """Which of the things that the service needs answer."""

    database: bool
    cache: bool
    upstream: bool

    @property
    def ready(self) -> bool:
        """Whether all answer."""
        return self.database and self.cache and self.upstream
