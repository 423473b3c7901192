"""What happens after the response: a background task, and the end of a dependency."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, status
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from service.dependencies import Delay, Sessions
from service.models import Notification
from service.routes import BAD_BODY
from service.routes.waiting import DEFAULT_DELAY
from service.schemas import Accepted, NewNotification, Waited

router = APIRouter(tags=["after the response"])
_DEFAULT_NOTIFICATION = NewNotification()


@router.post(
    "/notify",
    summary="Answer, then send a message as a background task",
    status_code=status.HTTP_202_ACCEPTED,
    responses=BAD_BODY,
)
async def notify(
    background: BackgroundTasks, sessions: Sessions, new: NewNotification = _DEFAULT_NOTIFICATION
) -> Accepted:
    """Accept a short side effect that may be lost: it dies with this worker."""
    background.add_task(_send, sessions, new)
    return Accepted()


async def _send(sessions: async_sessionmaker[AsyncSession], new: NewNotification) -> None:
    await asyncio.sleep(new.seconds)
    # A session of its own: the request's is closed by now.
    async with sessions.begin() as session:
        session.add(Notification(message=new.message))


async def _slow_to_leave(delay: Delay = DEFAULT_DELAY) -> AsyncIterator[float]:
    yield delay
    await asyncio.sleep(delay)


@router.get("/teardown", summary="A dependency that takes its time to end, after the response")
async def teardown(delayed: Annotated[float, Depends(_slow_to_leave)]) -> Waited:
    """Answer at once; the client has its answer, and the worker is not done."""
    return Waited(seconds=delayed)
