"""What clients are told when a request cannot be carried out: a status and a sentence, not a stack trace."""

import json
import logging
from collections.abc import Awaitable, Callable

import httpx
import requests
import sqlalchemy.exc
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from service.routes.upstream import UpstreamFailed

logger = logging.getLogger(__name__)

_QUERY_CANCELED = "57014"  # PostgreSQL's code
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
    """Answer 422 where the request is wrong, and 502, 503 or 504 where a need of the service fails."""
    app.add_exception_handler(RequestValidationError, _refuse)
    for kind, (status, detail) in _ANSWERS.items():
        app.add_exception_handler(kind, _answer(status, detail))
    app.add_exception_handler(sqlalchemy.exc.DBAPIError, _answer_if_cancelled)


async def _refuse(_: Request, error: Exception) -> Response:
    # FastAPI's own handler repeats the input, and fails on what JSON cannot carry back: NaN, half a character.
    assert isinstance(error, RequestValidationError)
    told = [{part: problem[part] for part in ("type", "loc", "msg")} for problem in error.errors()]
    return Response(json.dumps({"detail": told}), status_code=422, media_type="application/json")


async def _answer_if_cancelled(request: Request, error: Exception) -> JSONResponse:
    # SQLAlchemy has no class of its own for asyncpg's cancelled statement; its other errors are mistakes of ours.
    if getattr(getattr(error, "orig", None), "sqlstate", None) != _QUERY_CANCELED:
        raise error
    return await _answer(503, "the database took too long")(request, error)


def _answer(status: int, detail: str) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def answer(_: Request, error: Exception) -> JSONResponse:
        logger.warning("%s: %r", detail, error)
        return JSONResponse({"detail": detail}, status)

    return answer
