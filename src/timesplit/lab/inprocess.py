"""The bursts as an in-process test makes them: `python -m timesplit.lab.inprocess RUN --app module:factory`.

No server, no socket: httpx hands each request to the application as a call. Each call is timed from its own
start, as a test does, and so misses what it waited before that; the burst's wall time is beside it.
"""

import argparse
import asyncio
import importlib
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import httpx

from timesplit import schema
from timesplit.runfolder import RunFolder, TableWriter

ROUTES = ("/async-sleep", "/blocking-in-async", "/sync-blocking", "/offloaded-blocking")
SIZES = (20, 100)
BURSTS = 2  # of each size and route: a burst of 100 on the blocking route takes 5 s


class Router(Protocol):
    """What is needed of a FastAPI or Starlette router: its lifespan, which httpx does not run."""

    def lifespan_context(self, app: Any) -> AbstractAsyncContextManager[Any]:
        """Start the application, and stop it again."""


class Application(Protocol):
    """An ASGI application with such a router."""

    @property
    def router(self) -> Router:
        """Its router."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request."""


async def make_bursts(app: Application, *, bursts: int = BURSTS) -> list[dict[str, Any]]:
    """Make all bursts, one after the other, and return their requests as rows of `inprocess/`."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    rows: list[dict[str, Any]] = []
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://in-process", timeout=None) as client,
    ):
        for path, size, number in _plan(bursts):
            if (size, number) == (SIZES[0], 0):
                await client.get(path)  # a test's first request imports and connects: it does not count
            facts = {"name": f"GET {path}", "stage": f"burst-{size}", "burst": number}
            facts["burst_started"] = time.monotonic_ns()
            calls = await asyncio.gather(*(_call(client, path) for _ in range(size)))
            rows += [{**facts, **call} for call in calls]
    return rows


def main() -> None:
    """Make the bursts and write them into a run."""
    parser = argparse.ArgumentParser(prog="python -m timesplit.lab.inprocess", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--app", required=True, help="module:factory of the application")
    options = parser.parse_args()
    module, _, factory = options.app.partition(":")
    app = getattr(importlib.import_module(module), factory)()
    run = RunFolder.open(options.run)
    TableWriter(run.path, schema.INPROCESS, secrets.token_hex(8)).write_rows(asyncio.run(make_bursts(app)))


def _plan(bursts: int) -> Iterator[tuple[str, int, int]]:
    return ((path, size, number) for path in ROUTES for size in SIZES for number in range(bursts))


async def _call(client: httpx.AsyncClient, path: str) -> dict[str, int]:
    started = time.monotonic_ns()
    response = await client.get(path)
    return {"started": started, "done": time.monotonic_ns(), "status": response.status_code}


if __name__ == "__main__":
    main()
