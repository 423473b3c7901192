"""The application under test for threads, databases and calls: each route stamps its own instants.

Needs DATABASE_URL and PEER_URL; the database stamps its own, and so does the peer.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import httpx
import requests
import sqlalchemy
import sqlalchemy.ext.asyncio
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import make_url, text
from starlette.concurrency import run_in_threadpool

from tests.wallclock import monotonic

clock = time.monotonic_ns
Stamps = dict[str, int]
NOW = "extract(epoch FROM clock_timestamp())::float8"
POOL = 20  # connections
TWO_TOKENS = anyio.CapacityLimiter(2)

database = make_url(os.environ["DATABASE_URL"])
engine = sqlalchemy.ext.asyncio.create_async_engine(
    database.set(drivername="postgresql+asyncpg"), pool_size=POOL, max_overflow=0
)
sync_engine = sqlalchemy.create_engine(database.set(drivername="postgresql+psycopg"))
blocks: asyncio.Queue[asyncio.Future[Stamps]] = asyncio.Queue()
client: httpx.AsyncClient


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    global client
    async with httpx.AsyncClient(base_url=os.environ["PEER_URL"]) as client:
        blocker = asyncio.create_task(block_on_demand())
        await asyncio.gather(*(select(0) for _ in range(POOL)))
        yield
        blocker.cancel()
    await engine.dispose()


async def block_on_demand() -> None:
    """Nobody's task, that blocks the loop 8 ms after it is asked to."""
    while True:
        blocked = await blocks.get()
        await asyncio.sleep(0.008)
        start = clock()
        time.sleep(0.2)  # noqa: ASYNC251  # the mistake that is measured
        blocked.set_result({"block_start": start, "block_end": clock()})


def blocked_soon() -> asyncio.Future[Stamps]:
    blocked: asyncio.Future[Stamps] = asyncio.get_running_loop().create_future()
    blocks.put_nowait(blocked)
    return blocked


def stamps(row: Any) -> Stamps:
    return {"query_start": monotonic(row[0]), "query_end": monotonic(row[2])}


def sleeping(seconds: float) -> Any:
    return text(f"SELECT {NOW}, pg_sleep({seconds}), {NOW} FROM pg_am LIMIT 1")


async def select(seconds: float) -> Stamps:
    async with engine.connect() as connection:
        return stamps((await connection.execute(sleeping(seconds))).one())


app = FastAPI(lifespan=lifespan)


@app.get("/thread")
def thread(seconds: float = 0.05) -> JSONResponse:
    """A response, not a value: FastAPI would check that in a thread too, for another token."""
    start = clock()
    time.sleep(seconds)
    return JSONResponse({"start": start, "end": clock()})


@app.get("/two-threads")
async def two_threads(seconds: float = 0.15) -> Stamps:
    """At most two at a time."""
    found: Stamps = {}

    def job() -> None:
        found["start"] = clock()
        time.sleep(seconds)
        found["end"] = clock()

    asked = clock()
    await anyio.to_thread.run_sync(job, limiter=TWO_TOKENS)
    return {"asked": asked, **found, "back": clock()}


@app.get("/block-when-two-wait")
async def block_when_two_wait() -> Stamps:
    while TWO_TOKENS.statistics().tasks_waiting < 2:  # noqa: ASYNC110  # anyio's limiter has no event
        await asyncio.sleep(0.001)
    return await blocked_soon()


@app.get("/query")
async def query(seconds: float = 0.05) -> Stamps:
    asked = clock()
    async with engine.connect() as connection:
        granted = clock()
        found = stamps((await connection.execute(sleeping(seconds))).one())
        return {"asked": asked, "granted": granted, **found, "released": clock()}


@app.get("/query-in-thread")
def query_in_thread(seconds: float = 0.05) -> Stamps:
    with sync_engine.connect() as connection:
        return stamps(connection.execute(sleeping(seconds)).one())


@app.get("/late-query")
async def late_query() -> Stamps:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        blocked = blocked_soon()
        found = stamps((await connection.execute(sleeping(0.02))).one())
    return {**found, **await blocked}


@app.get("/late-call")
async def late_call() -> Stamps:
    await client.get("/0")
    blocked = blocked_soon()
    await client.get("/0.02")
    return await blocked


@app.get("/call-in-thread")
async def call_in_thread() -> Stamps:
    url = os.environ["PEER_URL"] + "/0.05"
    await run_in_threadpool(requests.get, url)
    return {}


@app.get("/gather")
async def gather() -> Stamps:
    start = clock()
    await asyncio.gather(asyncio.sleep(0.03), select(0.05), client.get("/0.08"))
    return {"start": start, "end": clock()}
