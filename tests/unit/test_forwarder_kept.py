"""What is kept, how it reads as a trace, and that histograms count every request."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timesplit.forwarder.histograms import BUCKETS, LOWEST, SCALE, Histogram, PartHistograms, buckets
from timesplit.forwarder.keep import ERROR, SLOW, Policy, why_kept
from timesplit.forwarder.stories import Story, Stretch, dominant, name, spans
from timesplit.runfolder import arrow_schema
from timesplit.schema import SERVER

MS = 1_000_000


def row(number: int, **values: Any) -> dict[str, Any]:
    """A row of server/ that took `number` ms."""
    blank: dict[str, Any] = dict.fromkeys(SERVER.column_names())
    return (
        blank
        | {
            "trace_id": b"run-key!" + bytes([255 - number % 256] * 8),
            "span_id": number.to_bytes(8, "big"),
            "method": "GET",
            "service": "shop",
            "instance": "a" * 16,
            "pid": 1,
            "http_route": "/x",
            "status": 200,
            "started": 1000 * MS,
            "ended": 1000 * MS + number * MS,
            "ended_by": "response",
            "route_ns": number * MS,
        }
        | values
    )


def table(*rows: dict[str, Any]) -> pa.Table:
    """Rows of server/."""
    return pa.Table.from_pylist(list(rows), schema=arrow_schema(SERVER))


def test_everything_is_kept_while_there_is_little() -> None:
    assert why_kept(table(row(1), row(2)), 1.0, Policy(small=5)) == ["all", "all"]


def test_errors_and_the_slowest_of_each_route_are_kept() -> None:
    rows = [row(n) for n in range(1, 9)] + [
        row(1, http_route="/y"),
        row(2, status=503),
        row(1, ended_by="exception"),
    ]
    why = why_kept(table(*rows), 1.0, Policy(small=0, share=0, slowest=2))
    assert why == [None] * 6 + [SLOW, SLOW, SLOW, ERROR, ERROR]


def test_the_share_goes_by_the_lower_half_of_the_trace_id() -> None:
    rows = [row(n, trace_id=b"\xff" * 8 + (n << 56).to_bytes(8, "big")) for n in range(256)]
    why = why_kept(table(*rows), 1.0, Policy(small=0, share=0.25, slowest=0))
    assert [found is not None for found in why] == [n < 64 for n in range(256)]


def test_a_trace_reads_as_a_story() -> None:
    served = row(
        50, loop_ns=30 * MS, query_ns=15 * MS, route_ns=5 * MS, culprit="app/waiting.py:12 bad", culprit_ns=1
    )
    stretches = [
        Stretch("route", "", 1000 * MS, 1005 * MS),
        Stretch("query", "SELECT users", 1005 * MS, 1020 * MS),
        Stretch("loop", "", 1020 * MS, 1050 * MS, "app/waiting.py:12 bad", (b"t" * 16, b"s" * 8)),
    ]
    made = spans([Story(served, SLOW, stretches, {"timesplit.run": "abc"})], to_utc=10**18)
    assert [span.name for span in made] == ["GET /x", "route", "query SELECT users", "loop ← waiting.py:12"]
    server, *children = made
    assert {child.parent_span_id for child in children} == {server.span_id}
    assert len({span.span_id for span in made}) == 4
    assert server.start_time_unix_nano == 10**18 + 1000 * MS
    assert sum(child.end_time_unix_nano - child.start_time_unix_nano for child in children) == 50 * MS
    found = {attribute.key: attribute.value for attribute in server.attributes}
    assert found["timesplit.dominant"].string_value == "loop"
    assert found["timesplit.kept"].string_value == SLOW
    assert found["timesplit.part.query"].double_value == pytest.approx(0.015)
    assert (children[2].links[0].trace_id, children[2].links[0].span_id) == (b"t" * 16, b"s" * 8)


def test_names_of_stretches_are_short() -> None:
    assert name(Stretch("pool_wait", "", 0, 1)) == "pool_wait"
    assert name(Stretch("other_wait", "sleep", 0, 1)) == "other_wait sleep"


def test_unknown_parts_do_not_dominate() -> None:
    assert dominant(table(row(5, read_ns=None)).to_pylist()[0]) == "route"


@given(st.lists(st.integers(0, 200 * 10**9), min_size=1, max_size=50))
def test_each_duration_is_in_the_bucket_that_holds_it(durations: list[int]) -> None:
    base = 2.0 ** (2.0**-SCALE)
    for duration, index in zip(durations, buckets(np.array(durations)).tolist(), strict=True):
        seconds = max(duration, 1) / 1e9
        if index >= 0:
            low = base ** (LOWEST + index)
            assert seconds > low * (1 - 1e-9)
            assert seconds <= low * base * (1 + 1e-9) or index == BUCKETS - 1
        else:
            assert seconds <= 2.0**-17 * (1 + 1e-9)


def test_a_histogram_counts_all() -> None:
    histogram = Histogram()
    histogram.add(np.array([0, 100, 10 * MS, 200 * MS]))
    assert (histogram.count, histogram.zero, int(histogram.buckets.sum())) == (4, 2, 2)
    assert histogram.sum_ns == 100 + 210 * MS


def test_metrics_have_a_point_for_each_part_and_route_and_the_standard_names() -> None:
    histograms = PartHistograms(began_utc=1)
    histograms.add(table(row(5, query_ns=MS), row(7, http_route="/y", query_ns=0), row(7, http_route=None)))
    metrics = {metric.name: metric for metric in histograms.metrics(now_utc=2)}
    points = metrics["timesplit.request.part.duration"].exponential_histogram.data_points
    assert {tuple(a.value.string_value for a in point.attributes) for point in points} == {
        ("route", "/x", "GET"), ("route", "/y", "GET"), ("route", "GET"), ("query", "/x", "GET"), ("query", "/y", "GET")
    }  # fmt: skip
    [x, y] = metrics["db.client.operation.duration"].exponential_histogram.data_points
    assert (x.count, x.sum, y.zero_count) == (1, pytest.approx(0.001), 1)
    assert metrics["db.client.operation.duration"].unit == "s"
