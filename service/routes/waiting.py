"""Waiting: the same delay, waited for in four ways."""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool

from service.dependencies import Delay
from service.routes import MISTAKE
from service.schemas import Waited

router = APIRouter(tags=["waiting"])
DEFAULT_DELAY = 0.05


@router.get("/async-sleep", summary="Await a delay: other requests run meanwhile")
async def async_sleep(delay: Delay = DEFAULT_DELAY) -> Waited:
    """Await the delay; the event loop serves others meanwhile."""
    await asyncio.sleep(delay)
    return Waited(seconds=delay)


@router.get("/blocking-in-async", summary="MISTAKE: time.sleep inside async def", tags=[MISTAKE])
async def mistake_blocking_in_async(delay: Delay = DEFAULT_DELAY) -> Waited:
    """Block the event loop: every other request of this worker waits as well."""
    time.sleep(delay)  # noqa: ASYNC251 - the mistake that this route is there to show
    return Waited(seconds=delay)


@router.get(
    "/sync-blocking", summary="Block in a def route: in a worker thread, as many at once as there are tokens"
)
def sync_blocking(delay: Delay = DEFAULT_DELAY) -> Waited:
    """Block a worker thread."""
    time.sleep(delay)
    return Waited(seconds=delay)


@router.get("/offloaded-blocking", summary="Offload a blocking call from async def to a worker thread")
async def offloaded_blocking(delay: Delay = DEFAULT_DELAY) -> Waited:
    """Block a worker thread, on request of an async route."""
    await run_in_threadpool(time.sleep, delay)
    return Waited(seconds=delay)


def _slow_sync_dependency(delay: Delay = DEFAULT_DELAY) -> float:
    time.sleep(delay)
    return delay


@router.get(
    "/sync-dependency", summary="An async route whose dependency is a def: that runs in a worker thread"
)
async def sync_dependency(delayed: Annotated[float, Depends(_slow_sync_dependency)]) -> Waited:
    """Wait for a dependency that blocks a worker thread."""
    return Waited(seconds=delayed)
