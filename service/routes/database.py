"""PostgreSQL: sessions of three kinds, slow statements, held connections, N+1."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response, status
from sqlalchemy import Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import joinedload

from service.dependencies import DatabaseSession, SyncSessions, UserId
from service.models import Order, User
from service.routes import BAD_BODY, MISTAKE
from service.schemas import NewUser, Orders, OrderView, Problem, UserView, Waited

router = APIRouter(tags=["database"])
NO_USER: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "no such user"}}
Seconds = Annotated[float, Query(ge=0, le=5, allow_inf_nan=False, description="seconds")]


def found(user: User | None) -> User:
    """Return the user.

    Raises:
        HTTPException: there is none.
    """
    if user is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such user")
    return user


def _user_with_orders(user_id: int, *, and_items: bool) -> Select[User]:
    orders = joinedload(User.orders)
    return (
        select(User)
        .where(User.id == user_id)
        .options(orders.joinedload(Order.items) if and_items else orders)
    )


def _orders(user: User) -> Orders:
    return Orders(user_id=user.id, orders=[OrderView.model_validate(order) for order in user.orders])


@router.get("/users/{user_id}", summary="Read a user through the request's async session", responses=NO_USER)
async def read_user(user_id: UserId, session: DatabaseSession) -> UserView:
    """Read one row; the event loop serves others meanwhile."""
    return UserView.model_validate(found(await session.get(User, user_id)))


@router.get(
    "/sync-users/{user_id}", summary="Read a user through a sync session in a def route", responses=NO_USER
)
def read_user_sync(user_id: UserId, sessions: SyncSessions) -> UserView:
    """Read one row in a worker thread.

    The session lives inside the function, not in a dependency: a dependency is left in another worker thread,
    and threads that hold connections would wait for tokens of threads that wait for connections.
    """
    with sessions() as session:
        return UserView.model_validate(found(session.get(User, user_id)))


@router.get(
    "/hidden-sync-users/{user_id}",
    summary="MISTAKE: a sync session inside async def",
    tags=[MISTAKE],
    responses=NO_USER,
)
async def mistake_hidden_sync_user(user_id: UserId, sessions: SyncSessions) -> UserView:
    """Read one row and block the event loop until the database has answered."""
    with sessions() as session:
        return UserView.model_validate(found(session.get(User, user_id)))


@router.get("/slow-query", summary="A statement that takes long in the database")
async def slow_query(session: DatabaseSession, seconds: Seconds = 0.1) -> Waited:
    """Hold a connection while the database works."""
    await session.execute(select(func.pg_sleep(seconds)))
    return Waited(seconds=seconds)


@router.get(
    "/held-transaction",
    summary="MISTAKE: wait for something else inside a transaction",
    tags=[MISTAKE],
)
async def mistake_held_transaction(session: DatabaseSession, seconds: Seconds = 0.1) -> Waited:
    """Hold a connection while the database has nothing to do."""
    async with session.begin():
        await session.execute(select(func.now()))
        await asyncio.sleep(seconds)
    return Waited(seconds=seconds)


@router.get(
    "/users/{user_id}/orders-n-plus-one",
    summary="MISTAKE: one statement for the orders, then one for each order's items",
    tags=[MISTAKE],
    responses=NO_USER,
)
async def mistake_orders_n_plus_one(user_id: UserId, session: DatabaseSession) -> Orders:
    """Read a user's N orders with 1 + N statements."""
    user = found((await session.scalars(_user_with_orders(user_id, and_items=False))).unique().one_or_none())
    for order in user.orders:
        await order.awaitable_attrs.items
    return _orders(user)


@router.get(
    "/users/{user_id}/orders-joined",
    summary="The same orders and items with one statement",
    responses=NO_USER,
)
async def orders_joined(user_id: UserId, session: DatabaseSession) -> Orders:
    """Read a user's orders with their items at once."""
    user = found((await session.scalars(_user_with_orders(user_id, and_items=True))).unique().one_or_none())
    return _orders(user)


@router.post(
    "/users",
    summary="Create a user",
    status_code=status.HTTP_201_CREATED,
    responses={**BAD_BODY, 409: {"model": Problem, "description": "the email address is taken"}},
)
async def create_user(new: NewUser, session: DatabaseSession, response: Response) -> UserView:
    """Write one row, after validation."""
    user = User(email=new.email, name=new.name)
    session.add(user)
    try:
        await session.commit()
    except IntegrityError:
        raise HTTPException(status.HTTP_409_CONFLICT, "the email address is taken") from None
    response.headers["Location"] = f"/users/{user.id}"
    return UserView.model_validate(user)
