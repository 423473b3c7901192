"""The application under test for loop, ingress, response and culprits: each route stamps its own instants."""

import asyncio
import time

from fastapi import FastAPI

app = FastAPI()
clock = time.monotonic_ns


@app.get("/sleep")
async def sleep(seconds: float = 0.05) -> dict[str, int]:
    start = clock()
    await asyncio.sleep(seconds)
    return {"start": start, "end": clock()}


@app.get("/blocking")
async def blocking(seconds: float = 0.05) -> dict[str, int]:
    start = clock()
    time.sleep(seconds)  # noqa: ASYNC251  # the mistake that is measured
    return {"start": start, "end": clock()}
