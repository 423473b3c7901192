"""Whatever fails in the agent, requests are answered as without it, once, and the failure is counted."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse

from timesplit.instrumentation import request as request_module
from timesplit.instrumentation.agent import Agent
from timesplit.instrumentation.culprits import Culprits
from timesplit.instrumentation.ingress import Connection
from timesplit.instrumentation.journal import _FAILED, Journal
from timesplit.instrumentation.ledger import Run, Strand
from timesplit.instrumentation.loop import LoopHooks, here
from timesplit.instrumentation.watchdog import Watchdog

calls: list[str] = []
app = FastAPI()


@app.get("/plain/{number}")
async def plain(number: int) -> int:
    calls.append("plain")
    time.sleep(0.002)  # noqa: ASYNC251  # a long step
    return number


@app.get("/waits")
async def waits() -> list[int]:
    async def one(number: int) -> int:
        await asyncio.sleep(0.003)
        return number

    calls.append("waits")
    numbers = await asyncio.gather(one(1), one(2), asyncio.to_thread(int, 3))
    async with asyncio.timeout(1), asyncio.TaskGroup() as group:
        group.create_task(one(4))
    return list(numbers)


@app.get("/thread")
def thread(tasks: BackgroundTasks) -> str:
    calls.append("thread")
    tasks.add_task(asyncio.sleep, 0.002)
    return "thread"


@app.post("/body")
async def body(request: Request) -> int:
    calls.append("body")
    return len(await request.body())


@app.get("/stream")
async def stream(kind: str) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.002)
            yield b"data: piece\n\n"

    calls.append("stream")
    return StreamingResponse(pieces(), media_type=kind)


@app.get("/broken")
async def broken() -> None:
    calls.append("broken")
    raise RuntimeError("the application's own")


async def talk(port: int, request: bytes) -> tuple[int, bytes]:
    """Make a request and return status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), rest


async def use_everything(port: int) -> None:
    """Make requests of all kinds, and see that each is answered as it should be, and carried out once."""
    close = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    assert await talk(port, b"GET /plain/7" + close + b"\r\n") == (200, b"7")
    assert await talk(port, b"GET /waits" + close + b"\r\n") == (200, b"[1,2,3]")
    assert await talk(port, b"GET /thread" + close + b"\r\n") == (200, b'"thread"')
    post = b"POST /body" + close + b"Content-Length: 5\r\n\r\nhello"
    assert await talk(port, post) == (200, b"5")
    for kind in (b"text/plain", b"text/event-stream"):
        status, body = await talk(port, b"GET /stream?kind=" + kind + close + b"\r\n")
        assert (status, body.count(b"data: piece")) == (200, 3)
    assert (await talk(port, b"GET /broken" + close + b"\r\n"))[0] == 500
    assert (await talk(port, b"GET /nowhere" + close + b"\r\n"))[0] == 404
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /waits HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /plain/8" + close + b"\r\n")
    assert (await asyncio.wait_for(reader.read(), 10)).count(b"HTTP/1.1 200") == 2
    writer.close()
    _, leaving = await asyncio.open_connection("127.0.0.1", port)
    leaving.write(b"GET /waits HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.sleep(0.001)
    leaving.close()
    await asyncio.sleep(0.05)


EXPECTED = ["plain", "waits", "thread", "body", "stream", "stream", "broken", "waits", "plain"]

SEAMS: list[tuple[Any, str]] = [
    (Agent, "application"),
    (Connection, "__init__"),
    (Connection, "_arrival"),
    (Connection, "_info"),
    (Connection, "data"),
    (Connection, "serve"),
    (Connection, "unsent"),
    (Connection, "served"),
    (Connection, "lost"),
    (Culprits, "long_step"),
    (Culprits, "short_steps"),
    (Culprits, "wake"),
    (Journal, "close"),
    (Journal, "doing"),
    (Journal, "open"),
    (Journal, "text"),
    (LoopHooks, "_wake"),
    (LoopHooks, "_wrapped"),
    (LoopHooks, "_long"),
    (Strand, "__init__"),
    (Strand, "all_waits"),
    (Strand, "step"),
    (Strand, "wake"),
    (Watchdog, "wake"),
    (Run, "change"),
    (Run, "end"),
    (Watchdog, "_look"),
    (request_module, "ids"),
    (request_module, "split"),
    (request_module.Request, "__init__"),
    (request_module.Request, "_account"),
    (request_module.Request, "_complete"),
    (request_module.Request, "_end"),
    (request_module.Request, "_streamed"),
    (request_module.Request, "_write"),
    (request_module.Request, "_write_after"),
    (request_module.Request, "left"),
    (request_module.Request, "note"),
    (request_module.Request, "over"),
    (request_module.Request, "step"),
]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Agent]:
    """The agent, armed."""
    monkeypatch.setenv("TIMESPLIT_JOURNAL", str(tmp_path / "journals"))
    calls.clear()
    agent = Agent()
    agent.arm()
    yield agent
    agent.disarm()


async def serve_and_use(http: str) -> int:
    """Serve the application, use it, and return how many failures were counted."""
    config = uvicorn.Config(app, http=http, log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.ensure_future(server._serve([listener]))
    while not server.started:  # noqa: ASYNC110  # it has no event for that
        await asyncio.sleep(0.01)
    try:
        async with asyncio.timeout(15):
            await use_everything(listener.getsockname()[1])
        loop = here.loop
        failures = loop.told.journal._words[_FAILED] if loop and isinstance(loop.told, Culprits) else -1
    finally:
        server.should_exit = True
        await serving
    return failures


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(("owner", "attribute"), SEAMS, ids=lambda value: getattr(value, "__name__", value))
def test_an_error_of_ours_reaches_no_request(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, run: Any, owner: Any, attribute: str
) -> None:
    hit: list[bool] = []

    def fail(*_: object, **__: object) -> None:
        hit.append(True)
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(owner, attribute, fail)
    http = "httptools" if run is uvloop.run else "h11"
    failures = run(serve_and_use(http))
    assert calls[: len(EXPECTED)] == EXPECTED
    assert hit
    assert failures != 0


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_without_an_error_none_is_counted(agent: Agent, run: Any) -> None:
    assert run(serve_and_use("httptools")) == 0
    assert calls[: len(EXPECTED)] == EXPECTED
