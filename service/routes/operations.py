"""What those who run the service ask."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

import httpx
from fastapi import APIRouter, Response, status
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from service.dependencies import Cache, Sessions, Upstream
from service.models import User
from service.schemas import Health, Readiness

router = APIRouter(tags=["operations"])
logger = logging.getLogger(__name__)
_PROBE_TIMEOUT = 2.0


@router.get("/healthz", summary="Whether this worker's event loop turns")
async def healthz() -> Health:
    """Answer, without asking anybody else."""
    return Health()


@router.get(
    "/readyz",
    summary="Whether all that the service needs answers",
    responses={503: {"model": Readiness, "description": "something does not answer"}},
)
async def readyz(sessions: Sessions, cache: Cache, upstream: Upstream, response: Response) -> Readiness:
    """Ask the database for its schema, and cache and upstream whether they are there."""

    async def database() -> None:
        async with sessions() as session:
            await session.execute(select(User.id).limit(1))

    async def health() -> None:
        (await upstream.get("/healthz")).raise_for_status()

    answers = await asyncio.gather(_answers(database()), _answers(cache.ping()), _answers(health()))
    readiness = Readiness(database=answers[0], cache=answers[1], upstream=answers[2])
    if not readiness.ready:
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return readiness


async def _answers(probe: Awaitable[Any]) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            await probe
    except (OSError, SQLAlchemyError, RedisError, httpx.HTTPError) as error:
        logger.warning("not ready: %r", error)
        return False
    return True
