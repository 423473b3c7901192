"""Reads OTLP: which of the spans are requests served, which are calls that a request made, and whose they are.

Pure: protobuf messages in, small records out. Attribute names are those of OpenTelemetry's HTTP and database
conventions, the stable ones and the ones before.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from timesplit import spanfacts
from timesplit.clocks import Anchor
from timesplit.tracecontext import client_span_id

_CACHES = frozenset({"redis", "valkey", "memcached"})
_MOST = (
    1 << 62
)  # an instant beyond it (year 2116) is not one, and sums of such numbers would not fit a column


@dataclass(frozen=True, slots=True)
class Process:
    """The process that made a span, as its resource tells.

    Attributes:
        instance: random id of the process.
        service: OTEL_SERVICE_NAME.
        pid: process id; 0 where it does not tell.
        host: name of its host; empty where it does not tell.
        boot_id: boot id of its host; empty where it does not tell.
        anchor: how its clocks stand; None where it does not tell.
        armed: kinds of calls that it records: `spanfacts.QUERIES`, …
        versions: JSON object; empty where it does not tell.
    """

    instance: str
    service: str
    pid: int
    host: str
    boot_id: str
    anchor: Anchor | None
    armed: frozenset[str]
    versions: str


@dataclass(frozen=True, slots=True)
class Call:
    """A span inside a request: a call to database, cache or upstream, or one that only leads to such spans.

    Attributes:
        span_id: 8 bytes.
        parent_span_id: 8 bytes.
        kind: `spanfacts.QUERIES`, `CACHE`, `UPSTREAM`, or None.
        start: UTC nanoseconds.
        end: UTC nanoseconds.
    """

    span_id: bytes
    parent_span_id: bytes
    kind: str | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Served:
    """A server span: a request served, or a WebSocket.

    Attributes:
        trace_id: 16 bytes.
        span_id: 8 bytes.
        parent_span_id: 8 bytes, or None.
        client_span_id: 8 bytes from the trace state, or None.
        start: UTC nanoseconds.
        end: UTC nanoseconds.
        method: HTTP method; None on a WebSocket.
        route: template, or None.
        status: HTTP status, or None.
        ended_by: as in schema.SERVER, or None.
        seq: number within its worker, or None.
        stream: `websocket`, `sse`, or None.
        first: first message of the stream, UTC nanoseconds, or None.
        messages: messages of the stream.
        code: close code of a WebSocket, or None.
    """

    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes | None
    client_span_id: bytes | None
    start: int
    end: int
    method: str | None
    route: str | None
    status: int | None
    ended_by: str | None
    seq: int | None
    stream: str | None
    first: int | None
    messages: int
    code: int | None


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """A worker's last word.

    Attributes:
        spans_made: server spans that it made in its life.
    """

    spans_made: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """A span whose ids or times cannot be."""


Record = Served | Call | WorkerEnd | Malformed


def read_spans(request: ExportTraceServiceRequest) -> Iterator[tuple[Process, bytes, Record]]:
    """Yield what matters of an export request: its worker, trace id and record. Other spans are passed over."""
    for resource_spans in request.resource_spans:
        worker = read_process(resource_spans.resource)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                record = _record(span)
                if record is not None:
                    yield worker, span.trace_id, record


def read_process(resource: Resource) -> Process:
    """Tell whose spans these are."""
    told = _by_name(resource.attributes)
    monotonic, utc = _int(told, spanfacts.ANCHOR_MONOTONIC), _int(told, spanfacts.ANCHOR_UTC)
    known = monotonic is not None and utc is not None and monotonic >= 0 and utc >= 0
    return Process(
        instance=_text(told, "service.instance.id") or "unknown",
        service=_text(told, "service.name") or "unknown_service",
        pid=_int(told, "process.pid") or 0,
        host=_text(told, "host.name") or "",
        boot_id=_text(told, spanfacts.BOOT_ID) or "",
        anchor=Anchor(monotonic or 0, utc or 0) if known else None,
        armed=frozenset(_texts(told, spanfacts.ARMED)),
        versions=_text(told, spanfacts.VERSIONS) or "",
    )


def _record(span: Span) -> Record | None:
    if span.name == spanfacts.WORKER_END:
        return WorkerEnd(_int(_by_name(span.attributes), spanfacts.SPANS_MADE) or 0)
    if span.kind != Span.SPAN_KIND_SERVER and not span.parent_span_id:
        return None  # a call that no request made: the generator's own, or one of the start-up
    if not _is_sound(span):
        return Malformed()
    return _served(span) if span.kind == Span.SPAN_KIND_SERVER else _call(span)


def _is_sound(span: Span) -> bool:
    times = 0 < span.start_time_unix_nano <= span.end_time_unix_nano < _MOST
    return (
        times and len(span.trace_id) == 16 and len(span.span_id) == 8 and len(span.parent_span_id) in (0, 8)
    )


def _served(span: Span) -> Served | None:
    told = _by_name(span.attributes)
    method = _text(told, "http.request.method") or _text(told, "http.method")
    stream = _stream(told)
    if method is None and stream != "websocket":
        return None  # served by another protocol than HTTP
    seq = _int(told, spanfacts.SEQ)
    status = _int(told, "http.response.status_code") or _int(told, "http.status_code")
    return Served(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id or None,
        client_span_id=client_span_id(span.trace_state),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        method=method,
        route=_text(told, "http.route"),
        status=status,
        ended_by=_text(told, spanfacts.ENDED_BY) or _ended_by(span, status),
        seq=seq if seq is not None and seq >= 0 else None,
        stream=stream,
        first=_int(told, spanfacts.FIRST),
        messages=_int(told, spanfacts.MESSAGES) or 0,
        code=_int(told, spanfacts.CODE),
    )


def _stream(told: Mapping[str, AnyValue]) -> str | None:
    scheme = _text(told, "url.scheme") or _text(told, "http.scheme")
    stream = "websocket" if scheme in ("ws", "wss") else _text(told, spanfacts.STREAM)
    return stream if stream in ("websocket", "sse") else None


def _ended_by(span: Span, status: int | None) -> str | None:
    """Tell it from what every instrumentation records; None where that is not enough."""
    if any(event.name == "exception" for event in span.events):
        return "exception"
    return "response" if status is not None else None


def _call(span: Span) -> Call:
    kind = _kind(_by_name(span.attributes)) if span.kind == Span.SPAN_KIND_CLIENT else None
    return Call(span.span_id, span.parent_span_id, kind, span.start_time_unix_nano, span.end_time_unix_nano)


def _kind(told: Mapping[str, AnyValue]) -> str | None:
    system = _text(told, "db.system.name") or _text(told, "db.system")
    if system in _CACHES:
        return spanfacts.CACHE
    if system:
        # contrib's `connect` has no statement: waiting for the pool and connecting, which is no query.
        return spanfacts.QUERIES if "db.query.text" in told or "db.statement" in told else None
    return spanfacts.UPSTREAM if "http.request.method" in told or "http.method" in told else None


def _by_name(attributes: Iterable[KeyValue]) -> Mapping[str, AnyValue]:
    return {attribute.key: attribute.value for attribute in attributes}


def _text(told: Mapping[str, AnyValue], name: str) -> str | None:
    value = told.get(name)
    return value.string_value or None if value is not None else None


def _texts(told: Mapping[str, AnyValue], name: str) -> list[str]:
    value = told.get(name)
    return [item.string_value for item in value.array_value.values] if value is not None else []


def _int(told: Mapping[str, AnyValue], name: str) -> int | None:
    value = told.get(name)
    if value is None or not value.HasField("int_value"):
        return None
    return value.int_value if -_MOST < value.int_value < _MOST else None
