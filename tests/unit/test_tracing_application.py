import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import redis.asyncio
import requests
from asgi_lifespan import LifespanManager
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import StaticPool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

import timesplit
from timesplit.tracing import spans as tracing_spans
from timesplit.tracing.application import instrument

TRACE, CLIENT_SPAN = "0123456789abcdef" * 2, "fedcba9876543210"
OURS = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01", "tracestate": f"timesplit={CLIENT_SPAN}"}


class Collector:
    """Stands in for the exporter, and keeps what each worker's life exported."""

    def __init__(self) -> None:
        self.exporters: list[InMemorySpanExporter] = []

    def make(self) -> InMemorySpanExporter:
        self.exporters.append(InMemorySpanExporter())
        return self.exporters[-1]

    def spans(self, kind: SpanKind | None = None) -> list[ReadableSpan]:
        found = [span for exporter in self.exporters for span in exporter.get_finished_spans()]
        return [span for span in found if kind is None or span.kind is kind]

    def served(self) -> list[dict[str, Any]]:
        return [dict(span.attributes or {}) for span in self.spans(SpanKind.SERVER)]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    collector = Collector()
    monkeypatch.setattr(tracing_spans, "OTLPSpanExporter", collector.make)
    return collector


routes = APIRouter()
inner_routes = APIRouter()


@routes.get("/users/{user_id}")
async def user(user_id: int) -> dict[str, int]:
    return {"id": user_id}


@routes.get("/sync")
def sync() -> dict[str, int]:
    return {}


@routes.get("/raises")
async def raises() -> None:
    raise RuntimeError("hunter2")


@routes.get("/forbidden")
async def forbidden() -> None:
    raise HTTPException(403)


@routes.get("/events")
async def events() -> StreamingResponse:
    return StreamingResponse(iter(["data: 1\n\n", "data: 2\n\n"]), media_type="text/event-stream")


@routes.get("/breaks-off")
async def breaks_off() -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        yield "a"
        raise RuntimeError("hunter2")

    return StreamingResponse(body())


@routes.post("/notify")
async def notify(tasks: BackgroundTasks) -> dict[str, int]:
    tasks.add_task(lambda: None)
    return {}


@routes.websocket("/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    async for message in socket.iter_text():
        await socket.send_text(message)


@inner_routes.get("/items/{item_id}")
async def item(item_id: int) -> dict[str, int]:
    return {"id": item_id}


def application() -> FastAPI:
    app, inner = FastAPI(), FastAPI()
    app.include_router(routes)
    inner.include_router(inner_routes)
    app.mount("/inner", inner)
    return app


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    instrument(app)
    async with LifespanManager(app) as running:
        transport = httpx.ASGITransport(running.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


async def speak(app: FastAPI, said: list[Message]) -> list[Message]:
    """Hold a conversation over a WebSocket, and return what the application says."""
    heard: list[Message] = []

    async def send(message: Message) -> None:
        heard.append(message)

    async def receive() -> Message:
        return said.pop(0)

    scope = {"type": "websocket", "path": "/echo", "query_string": b"", "headers": [], "scheme": "ws"}
    await app(scope, receive, send)
    return heard


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "ended_by"),
    [
        ("GET", "/users/7", 200, "/users/{user_id}", "response"),
        ("HEAD", "/sync", 405, "/sync", "response"),
        ("GET", "/sync", 200, "/sync", "response"),
        ("GET", "/users/x", 422, "/users/{user_id}", "response"),
        ("GET", "/sync/", 307, None, "response"),
        ("GET", "/nowhere", 404, None, "response"),
        ("GET", "/raises", 500, "/raises", "exception"),
        ("GET", "/forbidden", 403, "/forbidden", "response"),
        ("GET", "/breaks-off", 200, "/breaks-off", "exception"),
        ("POST", "/notify", 200, "/notify", "response"),
        ("GET", "/inner/items/3", 200, "/inner", "response"),
    ],
)
async def test_each_request_has_exactly_one_server_span(
    collector: Collector, method: str, path: str, status: int, route: str | None, ended_by: str
) -> None:
    async with client_of(application()) as client:
        answer = await client.request(method, path, headers=OURS, follow_redirects=False)

    assert answer.status_code == status
    (span,) = collector.served()
    assert span["http.request.method"] == method
    assert span["http.response.status_code"] == status
    assert span.get("http.route") == route
    assert span["timesplit.ended_by"] == ended_by
    assert span["timesplit.seq"] == 0


async def test_the_span_belongs_to_the_trace_and_the_attempt_of_the_caller(collector: Collector) -> None:
    async with client_of(application()) as client:
        await client.get("/users/7", headers=OURS)

    (span,) = collector.spans(SpanKind.SERVER)
    assert span.context
    assert span.parent
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == CLIENT_SPAN
    assert span.context.trace_state.get("timesplit") == CLIENT_SPAN


async def test_server_spans_are_numbered_without_gap_and_the_last_word_is_their_number(
    collector: Collector,
) -> None:
    async with client_of(application()) as client:
        for path in ("/users/1", "/raises", "/nowhere", "/events", "/inner/items/3"):
            await client.get(path)

    *spans, last = collector.spans()
    assert [(s.attributes or {})["timesplit.seq"] for s in spans if s.kind is SpanKind.SERVER] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert (last.name, dict(last.attributes or {})) == ("timesplit.worker.end", {"timesplit.spans_made": 5})


async def test_nothing_of_value_leaves_the_process(collector: Collector) -> None:
    async with client_of(application()) as client:
        await client.get("/raises?token=hunter2", headers={"User-Agent": "hunter2"})
        await client.get("/breaks-off?token=hunter2")

    assert len(collector.served()) == 2
    assert not [span for span in collector.spans() if "hunter2" in span.to_json()]


async def test_an_event_stream_tells_when_it_began_and_what_it_carried(collector: Collector) -> None:
    async with client_of(application()) as client:
        await client.get("/events")

    (span,) = collector.spans(SpanKind.SERVER)
    told = span.attributes or {}
    assert (told["timesplit.stream"], told["timesplit.messages"]) == ("sse", 2)
    first = told["timesplit.first"]
    assert isinstance(first, int)
    assert span.start_time
    assert span.end_time
    assert span.start_time < first <= span.end_time


@pytest.mark.parametrize("code", [1000, 4321])
async def test_a_websocket_tells_its_messages_and_how_it_was_closed(collector: Collector, code: int) -> None:
    app = application()
    async with client_of(app):
        said: list[Message] = [{"type": "websocket.receive", "text": text} for text in ("a", "b", "c")]
        end = {"type": "websocket.disconnect", "code": code}
        heard = await speak(app, [{"type": "websocket.connect"}, *said, end])

    assert [message["type"] for message in heard] == ["websocket.accept", *["websocket.send"] * 3]
    (span,) = collector.served()
    assert (span["timesplit.stream"], span["timesplit.messages"], span["timesplit.code"]) == (
        "websocket",
        3,
        code,
    )
    assert span["timesplit.ended_by"] == "disconnect"
    assert span["http.route"] == "/echo"


async def test_a_request_that_the_client_leaves_ends_by_disconnect(collector: Collector) -> None:
    app = FastAPI()

    class Unfinished(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})

    @app.get("/")
    async def leave() -> Response:
        return Unfinished()

    async with client_of(app) as client:
        with pytest.raises(AssertionError):  # httpx wants the whole answer
            await client.get("/")

    assert collector.served()[0]["timesplit.ended_by"] == "disconnect"


async def test_an_exception_is_raised_by_one_call_of_the_application(collector: Collector) -> None:
    app, calls = FastAPI(), 0

    @app.get("/")
    async def fail() -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError

    async with client_of(app) as client:
        assert (await client.get("/")).status_code == 500

    assert calls == 1


async def test_an_exception_that_a_handler_answers_is_a_response(collector: Collector) -> None:
    app = application()

    @app.exception_handler(RuntimeError)
    async def handle(request: Request, error: Exception) -> Response:
        trace.get_current_span().record_exception(error)
        return PlainTextResponse("sorry", 409)

    async with client_of(app) as client:
        assert (await client.get("/raises")).status_code == 409

    assert collector.served()[0]["timesplit.ended_by"] == "response"


async def test_the_resource_tells_who_the_worker_is(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "orders")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab,service.instance.id=same")
    async with client_of(application()) as client:
        await client.get("/sync")

    (span,) = collector.spans(SpanKind.SERVER)
    told = span.resource.attributes
    assert told["service.name"] == "orders"
    assert told["deployment.environment.name"] == "lab"
    assert told["service.instance.id"] != "same"
    assert told["timesplit.armed"] == ("cache", "query", "upstream")
    assert isinstance(told["timesplit.anchor.utc"], int)
    assert span.start_time
    assert abs(told["timesplit.anchor.utc"] - span.start_time) < 60e9


async def test_a_process_that_starts_again_is_another_worker(collector: Collector) -> None:
    app = application()
    for _ in range(2):
        async with client_of(app) as client:
            await client.get("/sync")

    first, second = collector.spans(SpanKind.SERVER)
    assert [(span.attributes or {})["timesplit.seq"] for span in (first, second)] == [0, 0]
    assert (
        first.resource.attributes["service.instance.id"] != second.resource.attributes["service.instance.id"]
    )


async def test_two_applications_of_a_process_are_one_worker(collector: Collector) -> None:
    async with client_of(application()) as one:
        await one.get("/sync")
        async with client_of(application()) as other:
            await other.get("/sync")
        await one.get("/sync")

    assert [span["timesplit.seq"] for span in collector.served()] == [0, 1, 2]


async def test_an_application_that_is_instrumented_and_mounted_in_one_that_is_adds_nothing(
    collector: Collector,
) -> None:
    inner, outer = application(), FastAPI()
    instrument(inner)
    outer.mount("/outer", inner)
    async with client_of(outer) as client:
        assert (await client.get("/outer/sync")).status_code == 200

    assert len(collector.served()) == 1


async def test_a_second_call_changes_nothing(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    app = application()
    instrument(app)
    async with client_of(app) as client:
        await client.get("/sync")

    assert len(collector.served()) == 1
    assert caplog.text == ""


async def test_without_lifespan_there_are_no_spans_and_the_application_works(collector: Collector) -> None:
    app = application()
    instrument(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        assert (await client.get("/sync")).status_code == 200

    assert collector.spans() == []


async def test_an_application_with_tracing_of_its_own_is_left_alone(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    app = application()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=TracerProvider())
    async with client_of(app) as client:
        assert (await client.get("/sync")).status_code == 200

    assert collector.spans() == []
    assert "tracing of its own" in caplog.text


async def test_an_application_with_a_provider_of_its_own_is_left_alone(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", TracerProvider)
    async with client_of(application()) as client:
        assert (await client.get("/sync")).status_code == 200

    assert collector.spans() == []


async def test_the_lifespan_of_the_application_runs_inside_ours(collector: Collector) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"greeting": "hello"}

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def greet(request: Request) -> str:
        return str(request.state.greeting)

    async with client_of(app) as client:
        assert (await client.get("/")).json() == "hello"


async def test_a_request_on_which_opentelemetry_fails_is_served(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(application()) as client:
        answer = await client.get("/sync", headers=[(b"user-agent", b"\xff\\N{")])
        assert (await client.get("/sync")).status_code == 200

    assert answer.status_code == 200
    assert len(collector.served()) == 1
    assert "served without a span" in caplog.text


async def test_an_error_of_ours_costs_a_span_but_no_request(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(attributes: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(tracing_spans, "discreet_attributes", fail)
    async with client_of(application()) as client:
        assert [(await client.get("/sync")).status_code for _ in range(3)] == [200, 200, 200]

    assert collector.served() == []
    assert caplog.text.count("a span is lost") == 1


async def test_an_exporter_that_fails_breaks_no_request(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: object, spans: object) -> SpanExportResult:
        raise RuntimeError

    caplog.set_level(logging.CRITICAL, "opentelemetry")
    monkeypatch.setattr(InMemorySpanExporter, "export", fail)
    async with client_of(application()) as client:
        assert (await client.get("/sync")).status_code == 200


async def test_libraries_are_traced_only_while_the_application_runs(collector: Collector) -> None:
    def patched() -> list[bool]:
        functions: list[Any] = [
            httpx.AsyncHTTPTransport.handle_async_request,
            requests.Session.send,
            redis.asyncio.Redis.execute_command,
            Engine.connect,
        ]
        return [hasattr(function, "__wrapped__") for function in functions]

    app = application()
    instrument(app)
    assert not any(patched())
    async with client_of(app):
        assert all(patched())
    assert not any(patched())

    with module_level_engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    engine: Any = module_level_engine
    assert list(engine.dispatch.before_cursor_execute) == []


module_level_engine = create_engine(
    "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
)


def _later_engine() -> Engine:
    return create_engine("sqlite://")


def _option_engine() -> Engine:
    return create_engine("sqlite://").execution_options(isolation_level="AUTOCOMMIT")


@pytest.mark.parametrize("engine_of", [lambda: module_level_engine, _later_engine, _option_engine])
async def test_each_statement_has_one_span_however_the_engine_was_made(
    collector: Collector, caplog: pytest.LogCaptureFixture, engine_of: Any
) -> None:
    app = FastAPI()

    @app.get("/")
    async def query() -> None:
        with engine_of().connect() as connection:
            connection.execute(text("SELECT 1, 'hunter2'"))
            connection.execute(text("SELECT 2"))

    async with client_of(app) as client:
        for _ in range(2):
            assert (await client.get("/")).status_code == 200

    statements = [
        (span.attributes or {})["db.query.text"]
        for span in collector.spans(SpanKind.CLIENT)
        if "db.query.text" in (span.attributes or {})
    ]
    assert statements == ["SELECT 1, ?", "SELECT 2"] * 2
    assert caplog.text == ""  # of two tracers of one engine, one would complain


async def test_an_engine_gets_one_tracer_however_often_it_connects(collector: Collector) -> None:
    engine: Any = _later_engine()
    async with client_of(application()):
        for _ in range(3):
            engine.connect().close()
        assert len(list(engine.dispatch.before_cursor_execute)) == 1
        engine.dispose()  # as applications do at their end

    assert list(engine.dispatch.before_cursor_execute) == []


async def test_the_origin_of_an_engine_with_options_is_not_traced_twice(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    app, origin = FastAPI(), create_engine("sqlite://")
    with_options = origin.execution_options(isolation_level="AUTOCOMMIT")

    @app.get("/")
    async def query() -> None:
        for engine in (with_options, origin, with_options):
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))

    async with client_of(app) as client:
        await client.get("/")

    statements = [s for s in collector.spans(SpanKind.CLIENT) if "db.query.text" in (s.attributes or {})]
    assert len(statements) == 3
    assert caplog.text == ""


def test_off_leaves_the_application_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMESPLIT_TRACES", "off")
    app = application()
    lifespan, build = app.router.lifespan_context, app.build_middleware_stack

    assert timesplit.instrument(app) is app
    assert (app.router.lifespan_context, app.build_middleware_stack) == (lifespan, build)


def test_a_mode_that_there_is_not_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMESPLIT_TRACES", "all")

    with pytest.raises(
        timesplit.errors.UsageError, match="TIMESPLIT_TRACES=all: use one of ledger, otel, off"
    ):
        timesplit.instrument(application())
