import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from timesplit.lab.inprocess import ROUTES, make_bursts


async def test_each_route_gets_its_bursts_with_the_lifespan_running() -> None:
    ready = False
    served: Counter[str] = Counter()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal ready
        ready = True
        yield
        ready = False

    app = FastAPI(lifespan=lifespan)

    @app.get("/{route}")
    async def answer(route: str) -> bool:
        served[f"/{route}"] += 1
        await asyncio.sleep(0)
        return ready

    rows = await make_bursts(app, bursts=2)

    assert not ready
    assert served == dict.fromkeys(ROUTES, 1 + 2 * (20 + 100))  # the one that does not count, and the bursts
    assert Counter((row["name"], row["stage"], row["burst"]) for row in rows) == {
        (f"GET {route}", f"burst-{size}", number): size
        for route in ROUTES
        for size in (20, 100)
        for number in (0, 1)
    }
    assert {row["status"] for row in rows} == {200}
    assert all(row["burst_started"] <= row["started"] < row["done"] for row in rows)


async def test_a_call_that_fails_is_a_row_with_its_status() -> None:
    app = FastAPI()

    @app.get("/async-sleep")
    async def fail() -> None:
        raise RuntimeError

    rows = await make_bursts(app, bursts=1)

    assert {row["status"] for row in rows if row["name"] == "GET /async-sleep"} == {500}
    assert {row["status"] for row in rows if row["name"] == "GET /sync-blocking"} == {404}
