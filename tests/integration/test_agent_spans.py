"""An application with tracing of its own keeps its server span, its only one, and finds the parts there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from tests.journal_reader import Account, read_workers
from timesplit.instrumentation import foreign
from timesplit.instrumentation.agent import Agent

Call = Callable[[Request], Awaitable[Response]]
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    monkeypatch.setenv("TIMESPLIT_JOURNAL", str(tmp_path / "journal"))
    agent = Agent()
    agent.arm()
    yield agent
    agent.disarm()


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


def application(**options: Any) -> FastAPI:
    app = FastAPI(**options)

    @app.get("/sleeps/{name}")
    async def sleeps(name: str) -> str:
        await asyncio.sleep(0.02)
        return name

    @app.get("/streams/{name}")
    async def streams(name: str) -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            yield "a"
            await asyncio.sleep(0.02)
            yield "b"

        return StreamingResponse(pieces())

    return app


def by_contrib(provider: TracerProvider) -> FastAPI:
    app = application()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    return app


def natively(provider: TracerProvider) -> FastAPI:
    return application(telemetry={"tracer_provider": provider, "metrics": False, "logs": False})


def by_hand(provider: TracerProvider) -> FastAPI:
    app, tracer = application(), provider.get_tracer("its own")

    class Traced:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            with tracer.start_as_current_span("request", kind=SpanKind.SERVER):
                await self.app(scope, receive, send)

    app.add_middleware(Traced)
    return app


def below_a_middleware(provider: TracerProvider) -> FastAPI:
    """Starlette runs what is below such a middleware in a task of its own."""
    app = by_hand(provider)

    @app.middleware("http")
    async def outer(request: Request, call: Call) -> Response:
        return await call(request)

    return app


KINDS = [by_contrib, natively, by_hand, below_a_middleware]


async def request(agent: Agent, app: Any, path: str) -> list[dict[str, Any]]:
    """Make a request as a server does, and return what was sent."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(dict(message))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test"), (b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }
    async with at_home(agent):
        await agent.enter(app, scope, receive, send)
    return sent


@asynccontextmanager
async def at_home(agent: Agent) -> AsyncIterator[None]:
    agent.enter_loop()
    yield
    agent._loops.popitem()[1].disarm()


def accounts(tmp_path: Path) -> list[Account]:
    return [account for worker in read_workers(tmp_path / "journal") for account in worker.requests]


def server_spans(spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
    return [span for span in spans if span.kind is SpanKind.SERVER]


@pytest.mark.parametrize("path", ["/sleeps/a", "/streams/a"])
@pytest.mark.parametrize("made", KINDS)
def test_the_parts_are_on_the_applications_own_server_span(
    made: Callable[[TracerProvider], FastAPI],
    path: str,
    agent: Agent,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    tmp_path: Path,
) -> None:
    app = made(provider)
    asyncio.run(request(agent, app, path))
    (span,) = server_spans(exporter.get_finished_spans())
    (account,) = accounts(tmp_path)
    assert account.done
    told: dict[str, Any] = dict(span.attributes or {})
    parts = {
        name.removeprefix(foreign.PART): value
        for name, value in told.items()
        if name.startswith(foreign.PART)
    }
    assert parts.keys() >= {"route", "other_wait"}
    assert sum(parts.values()) == pytest.approx(account.total / 1e9, abs=1e-6)
    assert parts["other_wait"] == pytest.approx(account.ms("other_wait") / 1e3, abs=1e-6)
    assert told[foreign.DOMINANT] == "other_wait"
    assert span.end_time is not None


@pytest.mark.parametrize("made", KINDS)
def test_the_record_says_whose_span_it_is(
    made: Callable[[TracerProvider], FastAPI],
    agent: Agent,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    tmp_path: Path,
) -> None:
    asyncio.run(request(agent, made(provider), "/sleeps/a"))
    (span,) = server_spans(exporter.get_finished_spans())
    (account,) = accounts(tmp_path)
    assert span.context is not None
    assert account.foreign == foreign.SAMPLED
    halves = account.foreign_trace_upper, account.foreign_trace_lower
    assert (
        b"".join(half.to_bytes(8, "big", signed=True) for half in halves).hex()
        == f"{span.context.trace_id:032x}"
    )
    assert account.foreign_span.to_bytes(8, "big", signed=True).hex() == f"{span.context.span_id:016x}"


def test_a_span_that_is_not_sampled_is_the_applications_decision(agent: Agent, tmp_path: Path) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    asyncio.run(request(agent, by_contrib(provider), "/sleeps/a"))
    (account,) = accounts(tmp_path)
    assert account.foreign == foreign.UNSAMPLED


def test_a_request_without_a_server_span_of_its_own_says_so(
    agent: Agent, provider: TracerProvider, tmp_path: Path
) -> None:
    app, tracer = application(), provider.get_tracer("its own")

    @app.get("/inner")
    async def inner() -> None:
        with tracer.start_as_current_span("inner"):
            pass

    asyncio.run(request(agent, app, "/inner"))
    (account,) = accounts(tmp_path)
    assert (account.foreign, account.foreign_span) == (foreign.NONE, 0)


def test_a_span_whose_processor_fails_disturbs_nobody(
    agent: Agent, provider: TracerProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("meant")

    monkeypatch.setattr(foreign, "tell", fail)
    sent = asyncio.run(request(agent, by_hand(provider), "/sleeps/a"))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    (account,) = accounts(tmp_path)
    assert account.done
    assert read_workers(tmp_path / "journal")[0].header["failed"] == 1


def test_spans_outside_requests_are_nobodys(agent: Agent, provider: TracerProvider) -> None:
    with provider.get_tracer("its own").start_as_current_span("job", kind=SpanKind.SERVER) as span:
        assert trace.get_current_span() is span
