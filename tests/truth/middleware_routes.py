"""The plain routes behind a middleware that runs each of them in a task of its own."""

from fastapi import FastAPI, Request, Response
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

from tests.truth.plain_routes import blocking, sleep

app = FastAPI()
app.get("/blocking")(blocking)
app.get("/sleep")(sleep)


class PassingOn(BaseHTTPMiddleware):
    """Passes on."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


app.add_middleware(PassingOn)
