"""Streams: server-sent events and a WebSocket."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, WebSocket
from fastapi.sse import EventSourceResponse, ServerSentEvent

from service.dependencies import Shared
from service.shutdown import pause

router = APIRouter(tags=["streams"])


@router.get("/stream/tokens", summary="Send tokens one by one", response_class=EventSourceResponse)
async def stream_tokens(
    resources: Shared,
    tokens: Annotated[int, Query(ge=1, le=1000)] = 20,
    interval: Annotated[float, Query(ge=0, le=5, allow_inf_nan=False, description="seconds")] = 0.05,
) -> AsyncIterator[ServerSentEvent]:
    """Send tokens at an interval, as a language model would; ends early where the server stops."""
    for number in range(tokens):
        if resources.stopping.is_set():
            return
        yield ServerSentEvent(event="token", id=str(number), data=f"token-{number}")
        await pause(resources.stopping, interval)


@router.websocket("/stream/echo")
async def echo(websocket: WebSocket) -> None:
    """Send back what comes, until the client or the server closes."""
    await websocket.accept()
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        if message.get("text") is not None:
            await websocket.send_text(message["text"])
        else:
            await websocket.send_bytes(message["bytes"])
