"""The application under test for loop, ingress, response and culprits: each route stamps its own instants."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.websockets import WebSocketDisconnect

app = FastAPI()
clock = time.monotonic_ns
cpu = time.thread_time_ns
seen: list[dict[str, int]] = []  # what work after a response stamped, for /seen


def spin(seconds: float) -> int:
    """Use that much CPU time; return how much it was."""
    start = cpu()
    while cpu() - start < seconds * 1e9:
        pass
    return cpu() - start


@app.get("/quick")
async def quick() -> dict[str, int]:
    return {"start": clock()}


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


@app.get("/cpu")
async def computing(seconds: float = 0.03) -> dict[str, int]:
    start = clock()
    used = spin(seconds)
    return {"start": start, "end": clock(), "cpu": used}


@app.get("/lock")
async def locked() -> dict[str, int]:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_later(0.05, lock.release)
    start = clock()
    await lock.acquire()
    return {"start": start, "end": clock()}


@app.get("/queue")
async def queued() -> dict[str, int]:
    queue: asyncio.Queue[int] = asyncio.Queue()
    asyncio.get_running_loop().call_later(0.05, queue.put_nowait, 1)
    start = clock()
    await queue.get()
    return {"start": start, "end": clock()}


@app.get("/hog")
def hog(seconds: float = 1.0) -> dict[str, int]:
    def burn() -> None:
        end = clock() + seconds * 1e9
        while clock() < end:
            pass

    threading.Thread(target=burn, name="burner").start()
    return {"start": clock()}


@app.get("/several")
async def several(times: int = 5) -> dict[str, int]:
    start = clock()
    for _ in range(times):
        await asyncio.sleep(0.002)
    return {"start": start, "end": clock()}


async def work(kind: int, seconds: float) -> None:
    start = clock()
    time.sleep(seconds / 2)  # noqa: ASYNC251  # half of it keeps the loop busy
    middle = clock()
    await asyncio.sleep(seconds / 2)
    seen.append({"kind": kind, "start": start, "middle": middle, "end": clock()})


@app.get("/background")
async def background(tasks: BackgroundTasks) -> dict[str, int]:
    tasks.add_task(work, 1, 0.1)
    return {"start": clock()}


async def torn_down() -> AsyncIterator[None]:
    yield
    await work(2, 0.1)


@app.get("/teardown")
async def teardown(_: Annotated[None, Depends(torn_down, scope="request")]) -> dict[str, int]:
    return {"start": clock()}


@app.get("/seen")
async def what_was_seen() -> list[dict[str, int]]:
    return seen


@app.get("/big")
async def big(megabytes: int = 24) -> Response:
    return Response(b"x" * megabytes * 1_000_000, media_type="application/octet-stream")


@app.get("/pieces")
async def pieces(count: int = 3000) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(count):
            await asyncio.sleep(0)
            yield b"piece\n"

    return StreamingResponse(parts(), media_type="text/plain")


@app.get("/events")
async def events(count: int = 4, seconds: float = 0.05) -> StreamingResponse:
    async def messages() -> AsyncIterator[bytes]:
        for number in range(count):
            yield f"data: {number} {clock()}\n\n".encode()
            await asyncio.sleep(seconds)

    return StreamingResponse(messages(), media_type="text/event-stream")


@app.websocket("/echo/{name}")
async def echo(socket: WebSocket, name: str) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(name + await socket.receive_text())
    except WebSocketDisconnect:
        return


@app.post("/upload")
async def upload(request: Request) -> dict[str, int]:
    start = clock()
    body = await request.body()
    return {"start": start, "end": clock(), "bytes": len(body)}


@app.get("/raise")
async def raising() -> None:
    raise RuntimeError("as it should")


@app.get("/typed/{number}")
async def typed(number: int) -> int:
    return number


@app.get("/short")
async def short(seconds: float = 0.0002) -> dict[str, int]:
    start = clock()
    spin(seconds)
    return {"start": start, "end": clock()}


async def _plain(_: Request) -> PlainTextResponse:
    return PlainTextResponse("plain")


inner = FastAPI()


@inner.get("/things/{thing}")
async def thing(thing: str) -> str:
    return thing


app.mount("/sub", inner)
app.router.routes.append(Mount("/of/{tenant}", routes=[Route("/plain", _plain)]))


async def for_ever() -> None:
    while True:  # noqa: ASYNC110  # nothing is waited for
        await asyncio.sleep(0.01)


@app.get("/background-forever")
async def background_for_ever(tasks: BackgroundTasks) -> dict[str, int]:
    tasks.add_task(for_ever)
    return {"start": clock()}
