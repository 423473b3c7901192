"""Spans as a worker exports them, for tests of the forwarder."""

from collections.abc import Iterable, Mapping

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from timesplit import spanfacts

KEY = bytes(range(8))  # of the run
TRACE = KEY + b"trace..1"
CLIENT_SPAN = b"client.1"
SERVER_SPAN = b"server.1"
UTC = 1_700_000_000_000_000_000  # when everything here happens, in nanoseconds
MS = 1_000_000
ANCHOR = {spanfacts.ANCHOR_UTC: UTC, spanfacts.ANCHOR_MONOTONIC: 5_000 * MS}

Value = str | int | list[str]


def server_span(
    span_id: bytes = SERVER_SPAN,
    *,
    trace_id: bytes = TRACE,
    start: int = 0,
    end: int = 100 * MS,
    seq: int | None = 0,
    parent: bytes = CLIENT_SPAN,
    client: bytes | None = CLIENT_SPAN,
    **attributes: Value,
) -> Span:
    """Return a server span as FastAPIInstrumentor makes them, times since `UTC`."""
    told: dict[str, Value] = {
        "http.request.method": "GET",
        "http.route": "/users/{user_id}",
        "http.response.status_code": 200,
        spanfacts.ENDED_BY: "response",
    }
    if seq is not None:
        told[spanfacts.SEQ] = seq
    span = _span(
        trace_id, span_id, parent, start, end, told | {_dotted(name): v for name, v in attributes.items()}
    )
    span.kind = Span.SPAN_KIND_SERVER
    if client:
        span.trace_state = f"timesplit={client.hex()}"
    return span


def query_span(span_id: bytes, start: int, end: int, **where: bytes) -> Span:
    """Return the span of a database statement."""
    return _call_span(
        span_id, start, end, {"db.system.name": "postgresql", "db.query.text": "SELECT"}, **where
    )


def cache_span(span_id: bytes, start: int, end: int, **where: bytes) -> Span:
    """Return the span of a cache command."""
    return _call_span(span_id, start, end, {"db.system.name": "redis", "db.query.text": "GET ?"}, **where)


def upstream_span(span_id: bytes, start: int, end: int, **where: bytes) -> Span:
    """Return the span of an outbound HTTP call."""
    return _call_span(span_id, start, end, {"http.request.method": "GET", "url.full": "http://up/"}, **where)


def connect_span(span_id: bytes, start: int, end: int, **where: bytes) -> Span:
    """Return contrib's span of getting a database connection, from the pool or a new one."""
    return _call_span(span_id, start, end, {"db.system.name": "postgresql"}, **where)


def inner_span(span_id: bytes, start: int, end: int, *, parent: bytes, trace_id: bytes = TRACE) -> Span:
    """Return a span that is no call by itself."""
    span = _span(trace_id, span_id, parent, start, end, {})
    span.kind = Span.SPAN_KIND_INTERNAL
    return span


def end_span(spans_made: int) -> Span:
    """Return a worker's last span."""
    span = _span(b"another trace...", b"the.last", b"", 0, 0, {spanfacts.SPANS_MADE: spans_made})
    span.name, span.kind = spanfacts.WORKER_END, Span.SPAN_KIND_INTERNAL
    return span


def request_of(*spans: Span, **attributes: Value) -> ExportTraceServiceRequest:
    """Return an export request of one worker; attributes are its resource's, a `_` for each dot."""
    told: dict[str, Value] = {
        "service.name": "demo",
        "service.instance.id": "a1",
        "process.pid": 42,
        "host.name": "vm",
        spanfacts.BOOT_ID: "boot",
        spanfacts.ARMED: ["query", "cache", "upstream"],
        **ANCHOR,
    }
    told |= {_dotted(name): value for name, value in attributes.items()}
    resource = Resource(attributes=_key_values(told))
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=spans)])]
    )


def _call_span(
    span_id: bytes,
    start: int,
    end: int,
    attributes: Mapping[str, Value],
    *,
    parent: bytes = SERVER_SPAN,
    trace_id: bytes = TRACE,
) -> Span:
    span = _span(trace_id, span_id, parent, start, end, attributes)
    span.kind = Span.SPAN_KIND_CLIENT
    return span


def _span(
    trace_id: bytes, span_id: bytes, parent: bytes, start: int, end: int, attributes: Mapping[str, Value]
) -> Span:
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent,
        name="span",
        start_time_unix_nano=UTC + start,
        end_time_unix_nano=UTC + end,
        attributes=_key_values(attributes),
    )


def _key_values(attributes: Mapping[str, Value]) -> Iterable[KeyValue]:
    return [KeyValue(key=name, value=_any(value)) for name, value in attributes.items()]


def _any(value: Value) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    return AnyValue(array_value=ArrayValue(values=[_any(item) for item in value]))


def _dotted(name: str) -> str:
    return name.replace("__", ".")
