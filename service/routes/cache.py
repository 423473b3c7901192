"""Valkey: a read with its miss path."""

import logging

from fastapi import APIRouter, Response
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.dependencies import Cache, DatabaseSession, Shared, UserId
from service.models import User
from service.routes.database import NO_USER, found
from service.schemas import UserView

router = APIRouter(tags=["cache"])
logger = logging.getLogger(__name__)


@router.get(
    "/cached-users/{user_id}",
    summary="Read a user from the cache, and on a miss from the database",
    description="The header `X-Cache` says `hit` or `miss`.",
    responses=NO_USER,
)
async def read_cached_user(
    user_id: UserId, resources: Shared, cache: Cache, session: DatabaseSession, response: Response
) -> UserView:
    """Read through the cache; where it fails, the database answers."""
    key = f"user:{user_id}"
    cached = await _read(cache, key)
    if cached is not None:
        response.headers["X-Cache"] = "hit"
        return UserView.model_validate_json(cached)
    user = UserView.model_validate(found(await session.get(User, user_id)))
    # The cache may take its time: the database connection is given back before.
    await session.close()
    await _write(cache, key, user.model_dump_json(), resources.settings.cache_ttl)
    response.headers["X-Cache"] = "miss"
    return user


async def _read(cache: Redis, key: str) -> str | None:
    try:
        value = await cache.get(key)
    except RedisError as error:
        logger.warning("cache read failed: %s", error)
        return None
    return value if isinstance(value, str) else None


async def _write(cache: Redis, key: str, value: str, seconds: float) -> None:
    try:
        await cache.set(key, value, px=round(seconds * 1000))
    except RedisError as error:
        logger.warning("cache write failed: %s", error)
