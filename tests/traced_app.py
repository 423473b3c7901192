"""A service for the tests of mode `otel`: it calls database, cache and upstream where it has them."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator

import httpx
import redis.asyncio
import requests
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

import timesplit

DATABASE_URL = os.environ.get("DATABASE_URL", "").replace("postgresql://", "postgresql+asyncpg://")
CACHE_URL = os.environ.get("CACHE_URL", "")
UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "")


def create_app() -> FastAPI:
    """Make the application, as the demo service is made."""
    app = FastAPI()
    app.add_api_route("/numbers/{number}", number)
    app.add_api_route("/sync", sync)
    app.add_api_route("/raises", raises)
    app.add_api_route("/body", body, methods=["POST"])
    app.add_api_route("/events", events)
    app.add_api_route("/calls", calls)
    app.add_api_route("/healthz", sync)
    app.add_api_websocket_route("/echo", echo)
    return timesplit.instrument(app)


async def number(number: int) -> int:
    await asyncio.sleep(0.001)
    return number


def sync() -> int:
    return threading.get_ident()


async def raises() -> None:
    raise RuntimeError("hunter2")


async def body(request: Request) -> int:
    # Slowly, so that the server stops reading the socket, and begins again from within this task.
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        await asyncio.sleep(0.005)
    return size


async def events(seconds: float = 0.05) -> StreamingResponse:
    async def stream() -> AsyncIterator[str]:
        for word in ("a", "b", "c"):
            yield f"data: {word}\n\n"
            await asyncio.sleep(seconds)

    return StreamingResponse(stream(), media_type="text/event-stream")


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    async for message in socket.iter_text():
        await socket.send_text(message)


async def calls() -> dict[str, float]:
    """Call database, cache and upstream, and tell how long each took, in seconds."""
    engine = create_async_engine(DATABASE_URL)
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))  # connecting asks some things of its own
        taken = {"query": await _time(connection.execute(text("SELECT pg_sleep(0.05)")))}
    await engine.dispose()
    async with redis.asyncio.Redis.from_url(CACHE_URL) as cache:
        taken["cache"] = await _time(cache.set("name", "hunter2"))
    async with httpx.AsyncClient() as client:
        taken["httpx"] = await _time(client.get(f"{UPSTREAM_URL}?token=hunter2"))
    taken["requests"] = await _time(asyncio.to_thread(requests.get, UPSTREAM_URL, timeout=5))
    return taken


async def _time(call: object) -> float:
    start = time.perf_counter()
    await call  # type: ignore[misc]  # whatever can be awaited
    return time.perf_counter() - start
