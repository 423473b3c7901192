"""Server spans by FastAPI's own telemetry tell the forwarder what FastAPIInstrumentor's tell it."""

from typing import Any

import httpx
import pytest
from asgi_lifespan import LifespanManager
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.types import Receive, Scope, Send

from timesplit.errors import UsageError
from timesplit.tracing import spans as tracing_spans
from timesplit.tracing.application import instrument


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing_spans, "OTLPSpanExporter", lambda: exporter)
    monkeypatch.setenv("TIMESPLIT_OTEL", "native")
    return exporter


class Unfinished(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})


def application() -> FastAPI:
    app, inner = FastAPI(), FastAPI()

    @inner.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    @app.get("/raises")
    async def raises() -> None:
        raise RuntimeError("hunter2")

    @app.get("/unfinished")
    async def unfinished() -> Unfinished:
        return Unfinished()

    @app.get("/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(iter(["data: 1\n\n", "data: 2\n\n"]), media_type="text/event-stream")

    app.mount("/inner", inner)
    return app


async def served(exporter: InMemorySpanExporter, path: str) -> list[ReadableSpan]:
    app = application()
    instrument(app)
    async with LifespanManager(app) as running:
        transport = httpx.ASGITransport(running.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            if path == "/unfinished":
                with pytest.raises(AssertionError):  # httpx wants the whole answer
                    await client.get(path)
            else:
                await client.get(path)
    return [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]


@pytest.mark.parametrize(
    ("path", "route", "ended_by"),
    [
        ("/inner/items/3", "/inner/items/{item_id}", "response"),
        ("/raises", "/raises", "exception"),
        ("/unfinished", "/unfinished", "disconnect"),
        ("/nowhere", None, "response"),
    ],
)
async def test_each_request_has_exactly_one_server_span(
    exporter: InMemorySpanExporter, path: str, route: str | None, ended_by: str
) -> None:
    (span,) = await served(exporter, path)
    told: dict[str, Any] = dict(span.attributes or {})
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "fastapi"
    assert (told.get("http.route"), told["timesplit.ended_by"]) == (route, ended_by)
    assert told["timesplit.seq"] == 0
    assert "hunter2" not in span.to_json()


async def test_an_event_stream_tells_what_it_carried(exporter: InMemorySpanExporter) -> None:
    (span,) = await served(exporter, "/events")
    told: dict[str, Any] = dict(span.attributes or {})
    assert (told["timesplit.stream"], told["timesplit.messages"]) == ("sse", 2)


def test_a_maker_of_spans_that_there_is_not_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMESPLIT_OTEL", "logfire")
    with pytest.raises(UsageError, match="TIMESPLIT_OTEL=logfire: use contrib or native"):
        instrument(FastAPI())


def test_a_fastapi_without_telemetry_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMESPLIT_OTEL", "native")
    app = FastAPI()
    del app._native_telemetry
    with pytest.raises(UsageError, match="has no telemetry"):
        instrument(app)
