"""A kept request as a trace that reads as a story: its server span, and a child span for each stretch.

Pure: rows in, OTLP messages out. Names are short and few, so that a search in Jaeger finds them by equality:
`query SELECT users`, `loop ← waiting.py:12`, `pool_wait`. The server span carries all parts and what one searches for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from timesplit.parts import SERVER_PARTS

SCOPE = "timesplit"
_ERROR = 500


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part segment of a kept request. Times in ns of CLOCK_MONOTONIC.

    Attributes:
        part: its name.
        label: what it is about, or empty.
        culprit: of a wait for the loop, `file:line function` of who ran, or None.
        culprit_span: the server span of the request whose step that was, with its trace, where that is kept too.
    """

    part: str
    label: str
    started: int
    ended: int
    culprit: str | None = None
    culprit_span: tuple[bytes, bytes] | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """A kept request: its row of server/, why it is kept, its stretches, and what else one searches for.

    Attributes:
        foreign: its server span, whose ids the row has, is made by the application's own tracing.
    """

    row: Mapping[str, Any]
    why: str
    stretches: Sequence[Stretch]
    search: Mapping[str, str]
    foreign: bool = False


def spans(stories: Iterable[Story], to_utc: int) -> list[Span]:
    """Return the spans of kept requests.

    Args:
        stories: the requests.
        to_utc: what to add to CLOCK_MONOTONIC to get UTC nanoseconds since 1970.
    """
    return [span for story in stories for span in _spans(story, to_utc)]


def resource_spans(made: Sequence[Span], attributes: Mapping[str, str]) -> ResourceSpans:
    """Return spans of one worker with its resource."""
    resource = Resource(attributes=[_attribute(key, value) for key, value in attributes.items()])
    scope = ScopeSpans(spans=made)
    scope.scope.name = SCOPE
    return ResourceSpans(resource=resource, scope_spans=[scope])


def dominant(row: Mapping[str, Any]) -> str:
    """Return the part that took most of a request."""
    return max(SERVER_PARTS, key=lambda part: row[part.column] or 0).name


def _spans(story: Story, to_utc: int) -> Iterable[Span]:
    row = story.row
    server = Span(
        trace_id=row["trace_id"],
        span_id=row["span_id"],
        parent_span_id=row["parent_span_id"] or b"",
        name=" ".join(word for word in (row["method"], row["http_route"]) if word),
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=(row["arrived"] or row["started"]) + to_utc,
        end_time_unix_nano=row["ended"] + to_utc,
        attributes=list(_attributes(story)),
    )
    if (row["status"] or 0) >= _ERROR or row["ended_by"] in ("exception", "killed"):
        server.status.code = Status.STATUS_CODE_ERROR
        server.status.message = row["ended_by"]
    if not story.foreign:
        yield server
    for number, stretch in enumerate(story.stretches):
        yield _child(row, number, stretch, to_utc)


def _child(row: Mapping[str, Any], number: int, stretch: Stretch, to_utc: int) -> Span:
    span = Span(
        trace_id=row["trace_id"],
        span_id=child_id(row["span_id"], number),
        parent_span_id=row["span_id"],
        name=name(stretch),
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=stretch.started + to_utc,
        end_time_unix_nano=stretch.ended + to_utc,
        attributes=[_attribute("timesplit.part", stretch.part)],
    )
    if stretch.culprit:
        span.attributes.append(_attribute("timesplit.culprit", stretch.culprit))
    if stretch.culprit_span:
        trace_id, span_id = stretch.culprit_span
        span.links.append(Span.Link(trace_id=trace_id, span_id=span_id))
    return span


def name(stretch: Stretch) -> str:
    """Return the span name of a stretch: the part and what it is about."""
    if stretch.culprit:
        place = stretch.culprit.split(" ")[0].rpartition("/")[2]
        return f"{stretch.part} ← {place}"
    return f"{stretch.part} {stretch.label}".strip()


def child_id(span_id: bytes, number: int) -> bytes:
    """Return the id of the span of a request's n-th stretch, the same whenever it is made."""
    return ((int.from_bytes(span_id, "big") + number + 1) % (1 << 64) or 1).to_bytes(8, "big")


def _attributes(story: Story) -> Iterable[KeyValue]:
    row = story.row
    known = {
        "http.request.method": row["method"],
        "http.route": row["http_route"],
        "http.response.status_code": row["status"],
        "timesplit.kept": story.why,
        "timesplit.dominant": dominant(row),
        "timesplit.culprit": row["culprit"],
        "timesplit.other": row["other"],
        "timesplit.ended_by": row["ended_by"],
        "timesplit.query_count": row["query_count"],
        "timesplit.upstream_count": row["upstream_count"],
        **story.search,
    }
    yield from (_attribute(key, value) for key, value in known.items() if value is not None)
    for part in SERVER_PARTS:
        if row[part.column]:
            yield _attribute(f"timesplit.part.{part.name}", row[part.column] / 1e9)


def _attribute(key: str, value: str | float) -> KeyValue:
    if isinstance(value, str):
        return KeyValue(key=key, value=AnyValue(string_value=value))
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    return KeyValue(key=key, value=AnyValue(double_value=value))
