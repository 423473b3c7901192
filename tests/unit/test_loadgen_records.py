"""Packed records become the rows that went in."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

import tests.unpatched_locust  # noqa: F401 - before all that imports Locust
from timesplit.clocks import Anchor
from timesplit.loadgen.progress import Tally
from timesplit.loadgen.records import (
    MOST_TEXTS,
    OTHER,
    PACKED,
    RECORD,
    UNKNOWN,
    Records,
    Texts,
    read_records,
    to_arrow,
)
from timesplit.loadgen.spans import SpanEncoder
from timesplit.runfolder import arrow_schema
from timesplit.schema import CLIENT, ERRORS

KEY = b"the key."

ids = st.binary(min_size=8, max_size=8)
instants = st.one_of(st.none(), st.integers(0, 2**62))
rows = st.fixed_dictionaries(
    {
        "trace": ids,
        "span": ids,
        "name": st.sampled_from(["GET /a", "POST /b/{id}", "GET /ü"]),
        "stage": st.sampled_from(["main", "burst-20"]),
        "method": st.sampled_from(["GET", "POST"]),
        "error": st.sampled_from([None, *ERRORS, "failed: wrong"]),
        "status": st.sampled_from([None, 200, 404, 599]),
        "reused": st.sampled_from([None, True, False]),
        "burst": st.sampled_from([None, 0, 9]),
        "intended": st.integers(0, 2**62),
        "sent": instants,
        "first_byte": instants,
        "done": instants,
        "ended": st.integers(0, 2**62),
        "connect_ns": instants,
        "bytes": instants,
    }
)


def pack(rows: list[dict[str, Any]]) -> tuple[Records, Texts, Texts]:
    names, words, buffers = Texts(), Texts(), []
    for row in rows:
        numbers = {name: UNKNOWN if value is None else value for name, value in row.items()}
        numbers["name"] = names.number(str(row["name"]))
        numbers |= {name: words.number(str(row[name] or "")) for name in ("stage", "method", "error")}
        buffers.append(PACKED.pack(*(numbers[name] for name in RECORD.names or ())))
    return read_records(buffers), names, words


@given(st.lists(rows, max_size=5))
def test_rows_come_out_as_they_went_in(given_rows: list[dict[str, Any]]) -> None:
    table = to_arrow(*_arguments(given_rows))

    assert table.schema.equals(arrow_schema(CLIENT))
    table.cast(arrow_schema(CLIENT)).validate(full=True)
    for row, out in zip(given_rows, table.to_pylist(), strict=True):
        ended = {name: row[name] for name in row if name not in ("trace", "span", "ended")}
        assert out == ended | {"trace_id": KEY + row["trace"], "span_id": row["span"], "generator": "me"}


def _arguments(given_rows: list[dict[str, Any]]) -> tuple[Records, bytes, Texts, Texts, str]:
    records, names, words = pack(given_rows)
    return records, KEY, names, words, "me"


def test_beyond_the_bound_all_texts_are_other() -> None:
    texts = Texts()
    numbers = {texts.number(f"GET /users/{number}") for number in range(10 * MOST_TEXTS)}

    assert len(numbers) == len(texts.texts) - 1 == MOST_TEXTS + 1
    assert texts.texts[texts.number("GET /users/9999")] == OTHER
    assert texts.texts[texts.number("GET /users/5")] == "GET /users/5"


@given(st.lists(rows, min_size=1, max_size=20))
def test_records_become_client_spans_of_the_same_ids_and_times(given_rows: list[dict[str, Any]]) -> None:
    records, names, words = pack(given_rows)
    encoder = SpanEncoder(KEY, "me", Anchor(monotonic=100, utc=5_100), "http://user:secret@service:81/?x=1")
    request = ExportTraceServiceRequest.FromString(encoder.encode(records, names, words))

    ((resource_spans,), ((scope_spans,),)) = (
        request.resource_spans,
        [one.scope_spans for one in request.resource_spans],
    )
    about = {pair.key: pair.value.string_value for pair in resource_spans.resource.attributes}
    assert about["service.name"] == "timesplit-generator"
    assert b"secret" not in request.SerializeToString()
    key = sorted(map(_expected, given_rows))
    assert sorted(map(_seen, scope_spans.spans)) == key


def _expected(row: dict[str, Any]) -> tuple[object, ...]:
    start = row["intended"] if row["sent"] is None else row["sent"]
    assert isinstance(start, int)
    assert isinstance(row["ended"], int)
    assert isinstance(row["trace"], bytes)
    facts = {
        "http.request.method": row["method"],
        "http.response.status_code": row["status"],
        "error.type": row["error"],
        "timesplit.stage": row["stage"],
        "timesplit.run": KEY.hex(),
        "server.address": "service",
        "server.port": 81,
        "url.template": str(row["name"]).removeprefix(f"{row['method']} "),
    }
    attributes = sorted((name, value) for name, value in facts.items() if value is not None)
    times = (start + 5_000, max(start, row["ended"]) + 5_000)
    return KEY + row["trace"], row["span"], row["name"], times, row["error"] is not None, repr(attributes)


def _seen(span: Span) -> tuple[object, ...]:
    assert span.kind == Span.SPAN_KIND_CLIENT
    values = ((pair.key, pair.value) for pair in span.attributes)
    attributes = sorted((key, getattr(value, value.WhichOneof("value"))) for key, value in values)
    failed = span.status.code == Status.STATUS_CODE_ERROR
    times = (span.start_time_unix_nano, span.end_time_unix_nano)
    return span.trace_id, span.span_id, span.name, times, failed, repr(attributes)


def responses(response_ns: list[int], intended: int = 0) -> Records:
    records = np.zeros(len(response_ns), RECORD)
    records["intended"] = intended
    records["done"] = records["intended"] + np.array(response_ns)
    return records


@given(st.lists(st.integers(2_000, 10**12), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_a_bucket_of_the_exact_one(response_ns: list[int], share: float) -> None:
    tally = Tally()
    tally.add(responses(response_ns), 0)
    exact = sorted(response_ns)[max(0, math.ceil(share * len(response_ns)) - 1)]

    assert tally.quantile_ms(share) == pytest.approx(exact / 1e6, rel=0.012)


def test_warm_up_and_what_was_not_answered_have_no_part_in_the_quantile() -> None:
    tally = Tally()
    tally.add(responses([10**9] * 100, intended=99), 100)
    unanswered = responses([10**9] * 100, intended=200)
    unanswered["done"] = UNKNOWN
    tally.add(unanswered, 100)

    assert tally.quantile_ms(0.99) is None


def test_tallies_of_several_processes_add_up() -> None:
    tallies = [Tally("main"), Tally("later")]
    for number, tally in enumerate(tallies, 1):
        tally.begun, tally.answered, tally.errors = 10 * number, 8 * number, number
        tally.add(responses([number * 10**6]), 0)
    total = Tally.sum_of(tally.message() for tally in tallies)

    assert (total.begun, total.answered, total.errors, total.stage) == (30, 24, 3, "later")
    assert total.quantile_ms(0.5) == pytest.approx(1, rel=0.012)
    assert total.quantile_ms(1) == pytest.approx(2, rel=0.012)


def test_no_records_make_a_table_without_rows() -> None:
    table = to_arrow(*_arguments([]))

    assert isinstance(table, pa.Table)
    assert table.num_rows == 0
