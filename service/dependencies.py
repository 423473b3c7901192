"""What routes ask for, as types."""

from collections.abc import AsyncIterator
from typing import Annotated

import httpx
import requests
from fastapi import Depends, Path, Query
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from starlette.requests import HTTPConnection

from service.resources import Resources

LARGEST_ID = 2**63 - 1  # PostgreSQL's bigint


async def _resources(connection: HTTPConnection) -> Resources:
    # Asynchronous, although it awaits nothing: a sync dependency would cost each request a worker thread.
    resources: Resources = connection.app.state.resources
    return resources


Shared = Annotated[Resources, Depends(_resources)]


async def _async_session(resources: Shared) -> AsyncIterator[AsyncSession]:
    async with resources.sessions() as session:
        yield session


async def _job_session(resources: Shared) -> AsyncIterator[AsyncSession]:
    async with resources.job_sessions() as session:
        yield session


async def _sessions(resources: Shared) -> async_sessionmaker[AsyncSession]:
    return resources.sessions


async def _sync_sessions(resources: Shared) -> sessionmaker[Session]:
    return resources.sync_sessions


async def _cache(resources: Shared) -> Redis:
    return resources.cache


async def _upstream(resources: Shared) -> httpx.AsyncClient:
    return resources.upstream


async def _sync_upstream(resources: Shared) -> requests.Session:
    return resources.sync_upstream


# Scope "function": the connection is back in the pool before the response is sent to a slow client.
DatabaseSession = Annotated[AsyncSession, Depends(_async_session, scope="function")]
JobSession = Annotated[AsyncSession, Depends(_job_session, scope="function")]
Sessions = Annotated[async_sessionmaker[AsyncSession], Depends(_sessions)]
SyncSessions = Annotated[sessionmaker[Session], Depends(_sync_sessions)]
Cache = Annotated[Redis, Depends(_cache)]
Upstream = Annotated[httpx.AsyncClient, Depends(_upstream)]
SyncUpstream = Annotated[requests.Session, Depends(_sync_upstream)]

UserId = Annotated[int, Path(ge=1, le=LARGEST_ID)]
Delay = Annotated[float, Query(ge=0, le=5, allow_inf_nan=False, description="seconds")]
