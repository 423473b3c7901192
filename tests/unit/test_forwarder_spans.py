from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.otlp_spans import (
    CLIENT_SPAN,
    TRACE,
    UTC,
    Value,
    cache_span,
    connect_span,
    end_span,
    inner_span,
    query_span,
    request_of,
    server_span,
    upstream_span,
)
from timesplit.clocks import Anchor
from timesplit.forwarder.spans import Call, Malformed, Record, Served, WorkerEnd, read_process, read_spans


def read(*spans: Span) -> list[Record]:
    return [record for _, _, record in read_spans(request_of(*spans))]


def served(**attributes: Value) -> Served:
    (record,) = read(server_span(**attributes))  # type: ignore[arg-type]  # attributes only
    assert isinstance(record, Served)
    return record


def test_a_server_span_tells_who_called_and_what_was_answered() -> None:
    one = served()

    assert (one.trace_id, one.parent_span_id, one.client_span_id) == (TRACE, CLIENT_SPAN, CLIENT_SPAN)
    assert (one.method, one.route, one.status, one.ended_by, one.seq) == (
        "GET",
        "/users/{user_id}",
        200,
        "response",
        0,
    )
    assert (one.start, one.end) == (UTC, UTC + 100_000_000)


def test_the_older_attribute_names_say_the_same() -> None:
    span = server_span()
    for attribute in span.attributes:
        attribute.key = {
            "http.request.method": "http.method",
            "http.response.status_code": "http.status_code",
        }.get(attribute.key, attribute.key)

    (one,) = read(span)

    assert isinstance(one, Served)
    assert (one.method, one.status) == ("GET", 200)


def test_a_span_without_parent_or_mark_is_a_request_of_somebody_else() -> None:
    (one,) = read(server_span(parent=b"", client=None))

    assert isinstance(one, Served)
    assert (one.parent_span_id, one.client_span_id) == (None, None)


def test_a_websocket_is_known_by_its_scheme_where_the_worker_does_not_say() -> None:
    span = server_span(url__scheme="ws")
    kept = [attribute for attribute in span.attributes if attribute.key != "http.request.method"]
    del span.attributes[:]
    span.attributes.extend(kept)

    (one,) = read(span)

    assert isinstance(one, Served)
    assert one.stream == "websocket"


def test_calls_are_told_apart_by_what_they_call() -> None:
    records = read(
        query_span(b"span...1", 0, 1), cache_span(b"span...2", 0, 1), upstream_span(b"span...3", 0, 1)
    )

    assert [record.kind for record in records if isinstance(record, Call)] == ["query", "cache", "upstream"]


def test_getting_a_connection_is_no_query() -> None:
    (record,) = read(connect_span(b"span...1", 0, 1))

    assert isinstance(record, Call)
    assert record.kind is None


def test_a_call_that_no_request_made_is_passed_over() -> None:
    assert read(query_span(b"span...1", 0, 1, parent=b""), upstream_span(b"span...2", 0, 1, parent=b"")) == []


def test_a_server_span_of_another_protocol_is_passed_over() -> None:
    span = server_span()
    del span.attributes[:]

    assert read(span) == []


def test_a_workers_last_word_says_how_many_spans_it_made() -> None:
    assert read(end_span(17)) == [WorkerEnd(17)]


def test_ids_and_times_that_cannot_be_are_malformed() -> None:
    spans = [server_span() for _ in range(5)]
    spans[0].trace_id = b"short"
    spans[1].span_id = b"short"
    spans[2].parent_span_id = b"short"
    spans[3].end_time_unix_nano = spans[3].start_time_unix_nano - 1
    spans[4].end_time_unix_nano = (1 << 64) - 1

    assert read(*spans) == [Malformed()] * 5


def test_an_exception_is_known_without_the_workers_help() -> None:
    span = inner_span(b"server.2", 0, 1, parent=CLIENT_SPAN)
    span.kind = Span.SPAN_KIND_SERVER
    span.attributes.extend(server_span().attributes)
    kept = [attribute for attribute in span.attributes if attribute.key != "timesplit.ended_by"]
    del span.attributes[:]
    span.attributes.extend(kept)
    span.events.add(name="exception")

    (one,) = read(span)

    assert isinstance(one, Served)
    assert one.ended_by == "exception"


def test_the_resource_says_whose_spans_these_are() -> None:
    worker = read_process(request_of().resource_spans[0].resource)

    assert (worker.instance, worker.service, worker.pid, worker.host) == ("a1", "demo", 42, "vm")
    assert worker.anchor == Anchor(monotonic=5_000_000_000, utc=UTC)
    assert worker.armed == {"query", "cache", "upstream"}


def test_a_resource_that_tells_nothing_is_taken_too() -> None:
    worker = read_process(request_of().resource_spans[0].resource.__class__())

    assert (worker.instance, worker.pid, worker.anchor, worker.armed) == ("unknown", 0, None, frozenset())


def test_numbers_that_are_none_do_no_harm() -> None:
    assert served(timesplit__seq=-1).seq is None
    assert served(timesplit__seq="seven").seq is None
    assert served(http__response__status_code="200").status is None
