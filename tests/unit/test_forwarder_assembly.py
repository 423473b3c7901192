from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.otlp_spans import (
    ANCHOR,
    CLIENT_SPAN,
    KEY,
    MS,
    SERVER_SPAN,
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
from timesplit.forwarder.assembly import HOLD_SECONDS, Assembly, Finished
from timesplit.forwarder.spans import read_spans

NOTHING: Mapping[str, Value] = {}
OWN = Anchor(monotonic=9_000 * MS, utc=UTC)


def take(assembly: Assembly, *spans: Span, now: float = 0.0, resource: Mapping[str, Value] = NOTHING) -> None:
    for process, trace_id, record in read_spans(request_of(*spans, **resource)):
        assembly.add(process, trace_id, record, now)


def finished(*spans: Span, **resource: Value) -> list[Finished]:
    assembly = Assembly(OWN)
    take(assembly, *spans, resource=resource)
    return list(assembly.finished(0.0, everything=True))


def row(*spans: Span, **resource: Value) -> dict[str, Any]:
    (one,) = finished(*spans, **resource)
    assert one.server is not None
    return one.server


def test_times_are_on_the_monotonic_clock_of_the_worker() -> None:
    one = row(server_span(start=10 * MS, end=30 * MS))

    assert (one["started"], one["ended"]) == (5_010 * MS, 5_030 * MS)


def test_a_worker_that_does_not_tell_its_clock_is_taken_to_have_ours() -> None:
    one = row(server_span(start=10 * MS), timesplit__anchor__utc="unknown")

    assert one["started"] == 9_010 * MS


def test_the_run_is_known_by_the_upper_half_of_the_trace_id() -> None:
    (one,) = finished(server_span())

    assert one.key == KEY


def test_calls_are_counted_and_timed_within_the_request() -> None:
    one = row(
        query_span(b"span...1", 10 * MS, 20 * MS),
        query_span(b"span...2", 30 * MS, 35 * MS),
        cache_span(b"span...3", 40 * MS, 41 * MS),
        upstream_span(b"span...4", 50 * MS, 90 * MS),
        connect_span(b"span...5", 0, 9 * MS),
        server_span(),
    )

    assert (one["query_ns"], one["query_count"]) == (15 * MS, 2)
    assert one["cache_ns"] == 1 * MS
    assert (one["upstream_ns"], one["upstream_count"]) == (40 * MS, 1)


def test_calls_that_overlap_are_timed_once() -> None:
    gathered = [upstream_span(bytes([8] * 7 + [i]), i * MS, (30 + 10 * i) * MS) for i in range(3)]

    one = row(*gathered, server_span())

    assert (one["upstream_ns"], one["upstream_count"]) == (50 * MS, 3)


def test_only_the_time_within_the_request_counts() -> None:
    one = row(
        server_span(start=50 * MS, end=100 * MS),
        query_span(b"before..", 0, 40 * MS),
        query_span(b"across.1", 40 * MS, 60 * MS),
        query_span(b"across.2", 90 * MS, 300 * MS),
        query_span(b"after...", 100 * MS, 200 * MS),
    )

    assert (one["query_ns"], one["query_count"]) == (20 * MS, 2)


def test_what_the_worker_records_and_did_not_see_is_zero_and_what_it_does_not_record_is_unknown() -> None:
    one = row(server_span(), timesplit__armed=["query"])

    assert (one["query_ns"], one["query_count"]) == (0, 0)
    assert (one["cache_ns"], one["upstream_ns"], one["upstream_count"]) == (None, None, None)


def test_a_call_that_was_seen_counts_even_where_the_worker_does_not_say_that_it_records_it() -> None:
    one = row(cache_span(b"span...1", 0, MS), server_span(), timesplit__armed=[])

    assert one["cache_ns"] == MS


def test_a_call_below_a_span_that_is_no_call_is_the_requests_own() -> None:
    one = row(
        query_span(b"span...1", 1 * MS, 2 * MS, parent=b"inner..2"),
        inner_span(b"inner..2", 0, 3 * MS, parent=b"inner..1"),
        inner_span(b"inner..1", 0, 4 * MS, parent=SERVER_SPAN),
        server_span(),
    )

    assert one["query_count"] == 1


def test_a_service_that_calls_itself_has_the_calls_where_they_were_made() -> None:
    inner = b"server.2"
    rows = {
        one.server["span_id"]: one.server
        for one in finished(
            query_span(b"query..1", 1 * MS, 2 * MS),
            query_span(b"query..2", 11 * MS, 12 * MS, parent=inner),
            query_span(b"query..3", 13 * MS, 14 * MS, parent=inner),
            server_span(inner, parent=b"upstrm.1", start=10 * MS, end=20 * MS, seq=0),
            upstream_span(b"upstrm.1", 9 * MS, 21 * MS),
            server_span(seq=1),
        )
        if one.server
    }

    assert [rows[span]["query_count"] for span in (SERVER_SPAN, inner)] == [1, 2]
    assert [rows[span]["upstream_ns"] for span in (SERVER_SPAN, inner)] == [12 * MS, 0]


def test_spans_of_another_worker_in_the_same_trace_are_not_mixed_in() -> None:
    assembly = Assembly(OWN)
    take(assembly, query_span(b"span...1", 0, MS), resource={"service__instance__id": "b2"})
    take(assembly, server_span())

    (one,) = assembly.finished(0.0, everything=True)

    assert one.server
    assert one.server["query_count"] == 0


def test_a_request_is_held_until_its_calls_had_time_to_come() -> None:
    assembly = Assembly(OWN)
    take(assembly, server_span(), now=10.0)
    assert list(assembly.finished(10.0 + HOLD_SECONDS - 0.1)) == []
    take(assembly, query_span(b"span...1", 0, MS), now=10.0 + HOLD_SECONDS - 0.1)

    (one,) = assembly.finished(10.0 + HOLD_SECONDS)

    assert one.server
    assert one.server["query_count"] == 1


def test_a_call_that_comes_after_its_requests_row_is_counted_as_late() -> None:
    assembly = Assembly(OWN)
    take(assembly, server_span())
    list(assembly.finished(0.0, everything=True))

    take(assembly, query_span(b"span...1", 0, MS))

    assert assembly.counters.late == 1


def test_work_after_the_response_is_neither_late_nor_held() -> None:
    assembly = Assembly(OWN)
    take(assembly, server_span())
    list(assembly.finished(0.0, everything=True))

    take(assembly, query_span(b"span...1", 200 * MS, 300 * MS, parent=b"backgrnd"))
    take(assembly, inner_span(b"backgrnd", 200 * MS, 300 * MS, parent=SERVER_SPAN))
    take(assembly, query_span(b"span...2", 200 * MS, 300 * MS, parent=b"backgrnd"))

    list(assembly.finished(1_000.0))
    assert (assembly.counters.late, assembly.counters.expired) == (0, 0)


def test_a_span_that_is_sent_again_makes_no_second_row_and_no_second_call() -> None:
    assembly = Assembly(OWN)
    spans = [query_span(b"span...1", 0, MS), server_span()]
    take(assembly, *spans)
    take(assembly, *spans)
    (one,) = assembly.finished(0.0, everything=True)
    take(assembly, *spans)

    assert list(assembly.finished(0.0, everything=True)) == []
    assert one.server
    assert one.server["query_count"] == 1
    assert assembly.counters.repeated == 4
    assert assembly.counters.late == 0


def test_calls_whose_request_never_ends_are_given_up_and_counted() -> None:
    assembly = Assembly(OWN)
    take(assembly, query_span(b"span...1", 0, MS), now=0.0)

    list(assembly.finished(599.0))
    assert assembly.counters.expired == 0
    list(assembly.finished(601.0))
    assert assembly.counters.expired == 1


def test_the_calls_held_are_bounded_and_those_given_up_are_counted() -> None:
    assembly = Assembly(OWN, calls_held=10)
    for i in range(15):
        take(assembly, query_span(bytes([9] * 7 + [i]), 0, MS, trace_id=bytes([i + 1] * 16)))

    assert assembly.counters.evicted == 5


def test_calls_of_finished_requests_are_not_held() -> None:
    assembly = Assembly(OWN, calls_held=10)
    for i in range(15):
        take(assembly, query_span(bytes([8] * 7 + [i]), 0, MS, parent=bytes([9] * 7 + [i])))
        take(assembly, server_span(bytes([9] * 7 + [i]), seq=i))
        list(assembly.finished(0.0, everything=True))

    assert assembly.counters.evicted == 0


def test_what_is_remembered_of_finished_spans_is_bounded() -> None:
    assembly = Assembly(OWN, settled_spans=3)
    for i in range(5):
        take(assembly, server_span(bytes([9] * 7 + [i])))
    list(assembly.finished(0.0, everything=True))

    take(assembly, *(server_span(bytes([9] * 7 + [i])) for i in range(5)))

    assert assembly.counters.repeated == 3


def test_the_last_word_of_a_worker_is_kept() -> None:
    assembly = Assembly(OWN)
    take(assembly, end_span(12))

    assert assembly.made == {"a1": 12}


def test_calls_in_a_circle_do_no_harm() -> None:
    one = row(
        query_span(b"span...1", 0, MS, parent=b"span...2"),
        query_span(b"span...2", 0, MS, parent=b"span...1"),
        server_span(),
    )

    assert one["query_count"] == 0


def test_a_websocket_has_a_row_in_streams_and_none_in_server() -> None:
    (one,) = finished(
        server_span(
            timesplit__stream="websocket",
            timesplit__first=UTC + 5 * MS,
            timesplit__messages=7,
            timesplit__code=1000,
            timesplit__ended_by="disconnect",
        )
    )

    assert one.server is None
    assert one.stream == {
        "trace_id": TRACE,
        "span_id": SERVER_SPAN,
        "parent_span_id": CLIENT_SPAN,
        "side": "server",
        "name": "/users/{user_id}",
        "stage": "",
        "kind": "websocket",
        "opened": 5_000 * MS,
        "first": 5_005 * MS,
        "messages": 7,
        "closed": 5_100 * MS,
        "code": 1000,
        "error": None,
    }


def test_an_event_stream_is_answered_with_its_first_bytes() -> None:
    (one,) = finished(
        query_span(b"span...1", 2 * MS, 4 * MS),
        query_span(b"span...2", 50 * MS, 60 * MS),
        server_span(timesplit__stream="sse", timesplit__first=UTC + 5 * MS, timesplit__messages=3),
    )

    assert one.server
    assert one.server["ended"] == 5_005 * MS
    assert one.server["query_count"] == 1
    assert one.stream
    assert (one.stream["closed"], one.stream["messages"], one.stream["code"]) == (5_100 * MS, 3, 200)


def test_a_first_message_outside_its_stream_is_not_believed() -> None:
    (one,) = finished(server_span(timesplit__stream="sse", timesplit__first=1 << 62))

    assert one.server
    assert one.server["ended"] == 5_100 * MS


@dataclass
class Program:
    """Some requests, and the rows that they should become."""

    spans: list[Span]
    expected: dict[bytes, tuple[int, int, int, int]]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Requests of one trace with calls, some below spans that are no calls, at random times."""
    spans: list[Span] = []
    expected = {}
    for number in range(draw(st.integers(1, 3))):
        trace_id = KEY + bytes([draw(st.integers(1, 2))] * 8)
        server = b"server" + bytes([number, 1])
        start = draw(st.integers(0, 50))
        end = start + draw(st.integers(1, 50))
        spans.append(server_span(server, trace_id=trace_id, start=start, end=end, seq=number))
        inner = b"inner." + bytes([number, 1])
        spans.append(inner_span(inner, start, end, parent=server, trace_id=trace_id))
        calls: dict[str, list[tuple[int, int]]] = {"query": [], "upstream": []}
        for i in range(draw(st.integers(0, 6))):
            kind = draw(st.sampled_from(["query", "upstream"]))
            call_start = draw(st.integers(0, 120))
            call_end = call_start + draw(st.integers(0, 60))
            make = query_span if kind == "query" else upstream_span
            parent = draw(st.sampled_from([server, inner]))
            spans.append(
                make(b"call.." + bytes([number, i]), call_start, call_end, parent=parent, trace_id=trace_id)
            )
            calls[kind].append((call_start, call_end))
        inside = {kind: [(a, b) for a, b in times if a < end and b >= start] for kind, times in calls.items()}
        expected[server] = (
            covered(inside["query"], start, end),
            len(inside["query"]),
            covered(inside["upstream"], start, end),
            len(inside["upstream"]),
        )
    return Program(spans, expected)


def covered(times: Sequence[tuple[int, int]], start: int, end: int) -> int:
    return sum(any(a <= t < b for a, b in times) for t in range(start, end))


@given(program=programs(), data=st.data())
def test_any_order_and_any_batches_give_the_same_rows(program: Program, data: st.DataObject) -> None:
    spans = data.draw(st.permutations(program.spans))
    again = data.draw(st.lists(st.sampled_from(spans), max_size=3))
    assembly = Assembly(OWN)
    rows: list[Finished] = []
    now = 0.0
    for span in [*spans, *again]:
        take(assembly, span, now=now)
        # Some batches apart, but all within the time for which a request is held.
        now += data.draw(st.sampled_from([0.0, HOLD_SECONDS / 40]))
        rows += assembly.finished(now)
    rows += assembly.finished(now, everything=True)

    assert {
        one.server["span_id"]: (
            one.server["query_ns"],
            one.server["query_count"],
            one.server["upstream_ns"],
            one.server["upstream_count"],
        )
        for one in rows
        if one.server
    } == program.expected
    assert len(rows) == len(program.expected)
    assert assembly.counters.repeated == len(again)
    assert assembly.counters.spans == len(spans)


@pytest.mark.parametrize("name", ANCHOR)
def test_an_anchor_that_cannot_be_is_not_used(name: str) -> None:
    one = row(server_span(), **{name.replace(".", "__"): (1 << 63) - 1})

    assert one["started"] == 9_000 * MS
