"""Applications of several shapes, as others write them; copied into a folder of its own for each server."""

import sys
from typing import Any

from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

app = FastAPI()
router = APIRouter(prefix="/shops/{shop}")
tenant = FastAPI()


@app.get("/users/{user_id}")
async def user(user_id: int) -> int:
    return user_id


@app.get("/fails")
async def fails() -> None:
    raise RuntimeError("meant")


@app.websocket("/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


@router.get("/items/{item}")
async def item(shop: str, item: str) -> list[str]:
    return [shop, item]


@tenant.get("/orders/{order}")
async def order(order: str) -> str:
    return order


async def plain(request: Request) -> PlainTextResponse:
    return PlainTextResponse("plain")


app.include_router(router, prefix="/v1")
app.mount("/tenants/{tenant}", tenant)
app.mount("/old", Starlette(routes=[Route("/p/{q}", plain), Mount("/deep", routes=[Route("/w", plain)])]))
starlette = Starlette(routes=[Route("/users/{user_id}", plain)])


class Copying:
    """An outer layer that hands on a copy of the scope, as ASGI recommends."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(dict(scope), receive, send)


class Double:
    """An application of ASGI 2."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await app(self.scope, receive, send)


async def function(scope: Any, receive: Any, send: Any) -> None:
    """An application without a framework, that knows no lifespan."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


wrapped = Copying(Copying(app))


def create() -> FastAPI:
    """Make the application."""
    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
