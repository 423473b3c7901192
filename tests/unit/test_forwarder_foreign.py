"""Requests of applications with tracing of their own: no second server span, and nothing that hangs in the air."""

from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from timesplit.forwarder.keep import Policy
from timesplit.forwarder.tail import Tail
from timesplit.instrumentation import foreign
from timesplit.instrumentation.journal import Journal
from timesplit.instrumentation.layout import CLOSING, UNKNOWN
from timesplit.parts import CODES

MS = 1_000_000
TRACE, SPAN = bytes(range(0xF0, 0x100)), b"\xfftheirs."
THEIRS = {
    "foreign_trace_upper": int.from_bytes(TRACE[:8], "big", signed=True),
    "foreign_trace_lower": int.from_bytes(TRACE[8:], "big", signed=True),
    "foreign_span": int.from_bytes(SPAN, "big", signed=True),
}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journals", "a" * 16, {"service": "shop"}, slots=64)


def serve(journal: Journal, start: int, **values: int) -> int:
    """Write a request of 20 ms, half of it a wait for the loop."""
    at, number = journal.open(start, b"", b"")
    fields = dict.fromkeys((name for name, _ in CLOSING.fields), 0)
    fields |= {"ended": start + 20 * MS, "status": 200, "route": journal.text("/x"), "segments": 2}
    fields["method"] = journal.text("GET")
    fields |= {"loop_ns": 10 * MS, "route_ns": 10 * MS} | values
    segments = [CODES["loop"], 0, start, start + 10 * MS, CODES["route"], 0, start + 10 * MS, start + 20 * MS]
    journal.close(at, number, start + 20 * MS, list(fields.values()), segments)
    return number


def exported(journal: Journal, tmp_path: Path) -> list[Span]:
    """Return the spans that the forwarder makes."""
    bodies: list[bytes] = []

    def export(signal: str, body: bytes, _: int) -> None:
        if signal == "traces":
            bodies.append(body)

    tail = Tail(journal.path.parent, tmp_path / "runs", "b" * 16, "boot", Policy(), export)
    tail.poll()
    tail.flush(1.0, 0)
    resources = [r for body in bodies for r in ExportTraceServiceRequest.FromString(body).resource_spans]
    return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]


def test_the_stretches_hang_below_the_span_of_the_application(journal: Journal, tmp_path: Path) -> None:
    serve(journal, 1_000 * MS, foreign=foreign.SAMPLED, **THEIRS)
    spans = exported(journal, tmp_path)
    assert [span.name for span in spans] == ["loop", "route"]
    assert {(span.trace_id, span.parent_span_id) for span in spans} == {(TRACE, SPAN)}


def test_where_the_application_samples_nothing_nothing_is_made(journal: Journal, tmp_path: Path) -> None:
    serve(journal, 1_000 * MS, foreign=foreign.UNSAMPLED, **THEIRS)
    assert exported(journal, tmp_path) == []


def test_an_application_without_tracing_gets_the_server_span(journal: Journal, tmp_path: Path) -> None:
    serve(journal, 1_000 * MS)
    server, *children = exported(journal, tmp_path)
    assert server.kind == Span.SPAN_KIND_SERVER
    assert {child.parent_span_id for child in children} == {server.span_id}


def test_a_victim_links_to_the_culprits_own_span(journal: Journal, tmp_path: Path) -> None:
    culprit = serve(journal, 1_000 * MS, foreign=foreign.SAMPLED, **THEIRS)
    serve(journal, 1_000 * MS)
    names = (journal.text("GET /bad"), journal.text("bad.py"), 12, journal.text("bad"))
    journal.step(culprit, 1_000 * MS, 1_010 * MS, UNKNOWN, *names)
    links = [link for span in exported(journal, tmp_path) for link in span.links]
    assert [(link.trace_id, link.span_id) for link in links] == [(TRACE, SPAN)]
