"""What a worker opens once and all its requests share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio.to_thread
import httpx
import procrastinate
import requests
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from requests.adapters import HTTPAdapter
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from service.database import async_engine, job_engine, sync_engine
from service.job_changes import JobChanges
from service.jobs import job_queue
from service.settings import Settings
from service.shutdown import stopping_event


@dataclass(frozen=True, slots=True)
class Resources:
    """What a worker opens once and all its requests share.

    Attributes:
        settings: the service's settings.
        sessions: sessions of the async routes.
        sync_sessions: sessions of the sync routes.
        job_sessions: sessions whose transaction the job queue can join.
        cache: the cache's client.
        upstream: the upstream service's client.
        upstream_without_timeout: the same without a timeout, for the route that shows that mistake.
        sync_upstream: the upstream service's client for sync routes.
        job_queue: takes jobs in.
        job_changes: wakes who follows a job.
        stopping: set when the server is told to stop.
    """

    settings: Settings
    sessions: async_sessionmaker[AsyncSession]
    sync_sessions: sessionmaker[Session]
    job_sessions: async_sessionmaker[AsyncSession]
    cache: Redis
    upstream: httpx.AsyncClient
    upstream_without_timeout: httpx.AsyncClient
    sync_upstream: requests.Session
    job_queue: procrastinate.App
    job_changes: JobChanges
    stopping: asyncio.Event


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open what requests share; engines and clients connect at the first use."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = settings.thread_tokens
    async with AsyncExitStack() as stack:
        stopping = stack.enter_context(stopping_event())
        sessions, sync_sessions, job_sessions = _open_engines(settings, stack)
        job_changes = JobChanges(settings, stopping)
        await stack.enter_async_context(job_changes.listening())
        yield Resources(
            settings=settings,
            sessions=sessions,
            sync_sessions=sync_sessions,
            job_sessions=job_sessions,
            cache=await stack.enter_async_context(_cache(settings)),
            upstream=await stack.enter_async_context(
                upstream_client(settings, timeout=settings.upstream_timeout)
            ),
            upstream_without_timeout=await stack.enter_async_context(upstream_client(settings, timeout=None)),
            sync_upstream=stack.enter_context(_sync_upstream_client(settings)),
            job_queue=job_queue(settings, sessions),
            job_changes=job_changes,
            stopping=stopping,
        )


def _open_engines(
    settings: Settings, stack: AsyncExitStack
) -> tuple[async_sessionmaker[AsyncSession], sessionmaker[Session], async_sessionmaker[AsyncSession]]:
    asynchronous, synchronous, jobs = async_engine(settings), sync_engine(settings), job_engine(settings)
    stack.push_async_callback(asynchronous.dispose)
    stack.callback(synchronous.dispose)
    stack.push_async_callback(jobs.dispose)
    return (
        async_sessionmaker(asynchronous, expire_on_commit=False),
        sessionmaker(synchronous, expire_on_commit=False),
        async_sessionmaker(jobs, expire_on_commit=False),
    )


def _cache(settings: Settings) -> Redis:
    pool = BlockingConnectionPool.from_url(
        str(settings.cache_url),
        max_connections=settings.cache_connections,
        timeout=settings.cache_timeout,
        socket_timeout=settings.cache_timeout,
        socket_connect_timeout=settings.cache_timeout,
        # The default retries for seconds: longer than asking the database instead.
        retry=Retry(NoBackoff(), retries=0),
        decode_responses=True,
    )
    return Redis.from_pool(pool)


def upstream_client(settings: Settings, *, timeout: float | None) -> httpx.AsyncClient:
    """Make a client of the upstream service.

    Args:
        settings: where the upstream service is, and how many connections it may get.
        timeout: seconds for each step of a call (get a connection, connect, write, read); None: for ever.
    """
    connections = settings.upstream_connections
    return httpx.AsyncClient(
        base_url=str(settings.upstream_url),
        timeout=timeout,
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        trust_env=False,  # a proxy for the way out is not for the service next door
    )


def _sync_upstream_client(settings: Settings) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.mount(str(settings.upstream_url), HTTPAdapter(pool_maxsize=settings.thread_tokens))
    return session
