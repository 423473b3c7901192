"""What clients are told when something that the service needs fails: a status, not a stack trace."""

import logging
from collections.abc import Awaitable, Callable

import httpx
import requests
import sqlalchemy.exc
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from service.routes.upstream import UpstreamFailed

logger = logging.getLogger(__name__)

_ANSWERS: dict[type[Exception], tuple[int, str]] = {
    sqlalchemy.exc.TimeoutError: (503, "no database connection was free in time"),
    sqlalchemy.exc.OperationalError: (503, "the database does not answer, or not in time"),
    sqlalchemy.exc.InterfaceError: (503, "the database does not answer"),
    # asyncpg's failure to connect, which SQLAlchemy does not wrap.
    OSError: (503, "something that the service needs does not answer"),
    httpx.TimeoutException: (504, "the upstream service did not answer in time"),
    httpx.HTTPError: (502, "the upstream service cannot be reached"),
    requests.Timeout: (504, "the upstream service did not answer in time"),
    requests.RequestException: (502, "the upstream service cannot be reached"),
    UpstreamFailed: (502, "the upstream service failed"),
}


def handle(app: FastAPI) -> None:
    """Answer 502, 503 or 504 where a need of the service fails."""
    for kind, (status, detail) in _ANSWERS.items():
        app.add_exception_handler(kind, _answer(status, detail))


def _answer(status: int, detail: str) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def answer(_: Request, error: Exception) -> JSONResponse:
        logger.warning("%s: %r", detail, error)
        return JSONResponse({"detail": detail}, status)

    return answer
