"""The journal between its two ends: what a worker writes is what the forwarder reads."""

from pathlib import Path

import numpy as np
import pytest

from timesplit.forwarder.accounts import (
    crowd_rows,
    killed_rows,
    run_keys,
    segment_rows,
    server_rows,
    span_ids,
    stream_rows,
    unhex,
)
from timesplit.forwarder.culprits import Charges, Steps
from timesplit.forwarder.journal import JournalReader
from timesplit.instrumentation.journal import Journal
from timesplit.instrumentation.layout import CLOSING, SEGMENTS_INLINE, UNKNOWN, span_id
from timesplit.parts import CODES, SERVER_PARTS

INSTANCE = "00f1e2d3c4b5a697"
TRACE = "0102030405060708" + "a" * 16
PARENT = "00f067aa0ba902b7"
Segments = list[tuple[int, int, int, int]]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A small journal."""
    return Journal(tmp_path / "journals", INSTANCE, {"service": "shop"}, slots=16)


def closing(journal: Journal, segments: Segments, **values: int) -> list[int]:
    """Fields of a finished request, zero where nothing is said."""
    fields = dict.fromkeys((name for name, _ in CLOSING.fields), 0)
    fields |= {
        "method": journal.text("GET"),
        "route": journal.text("/x"),
        "status": 200,
        "segments": len(segments),
    }
    for part, _, start, end in segments:
        fields[SERVER_PARTS[part].column] += end - start
    return list((fields | values).values())


def serve(journal: Journal, segments: Segments, *, marked: bool = True, **values: int) -> int:
    """Write a request with these segments, and return its number."""
    parent = f"00-{TRACE}-{PARENT}-01".encode() if marked else b""
    start, end = segments[0][2], segments[-1][3]
    at, number = journal.open(start, parent, PARENT.encode() if marked else b"")
    journal.close(
        at,
        number,
        end,
        closing(journal, segments, ended=end, **values),
        [word for segment in segments for word in segment],
    )
    return number


def blocks(journal: Journal, number: int, start: int, end: int, file: str = "bad.py") -> None:
    """Write a long step of a request."""
    journal.step(
        number, start, end, UNKNOWN, journal.text("GET /bad"), journal.text(file), 12, journal.text("bad")
    )


def test_a_request_is_read_as_it_was_written(journal: Journal) -> None:
    segments = [
        (CODES["route"], 0, 1_000, 4_000),
        (CODES["query"], journal.text("SELECT users"), 4_000, 9_000),
    ]
    number = serve(journal, segments, arrived=900)
    reader = JournalReader(journal.path)
    batch = reader.take()
    [row] = server_rows(reader.worker, batch.requests, reader.texts, Charges.none(1)).to_pylist()
    assert run_keys(batch.requests).tolist() == [int(TRACE[:16], 16)]
    assert (row["trace_id"].hex(), row["parent_span_id"].hex()) == (TRACE, PARENT)
    assert row["span_id"] == span_id(INSTANCE, number).to_bytes(8, "big")
    assert (row["service"], row["method"], row["http_route"], row["status"]) == ("shop", "GET", "/x", 200)
    assert (row["arrived"], row["started"], row["ended"], row["ended_by"]) == (900, 1_000, 9_000, "response")
    assert (row["route_ns"], row["query_ns"], row["loop_ns"], row["culprit_ns"]) == (3_000, 5_000, 0, None)
    assert [tuple(found) for found in batch.requests["segment"][0][:2]] == segments


def test_unknown_is_null_and_nothing_is_zero(journal: Journal) -> None:
    serve(journal, [(CODES["route"], 0, 1, 2)], arrived=UNKNOWN, read_ns=UNKNOWN, status=0, route=0)
    reader = JournalReader(journal.path)
    [row] = server_rows(reader.worker, reader.take().requests, reader.texts, Charges.none(1)).to_pylist()
    assert (row["arrived"], row["read_ns"], row["http_route"], row["status"]) == (None, None, None, None)
    assert row["query_ns"] == 0


def test_an_unmarked_request_belongs_to_no_run(journal: Journal) -> None:
    serve(journal, [(CODES["route"], 0, 1, 2)], marked=False)
    reader = JournalReader(journal.path)
    requests = reader.take().requests
    [row] = server_rows(reader.worker, requests, reader.texts, Charges.none(1)).to_pylist()
    assert run_keys(requests).tolist() == [0]
    assert any(row["trace_id"])


def test_open_requests_are_not_taken_but_can_be_seen(journal: Journal) -> None:
    at, number = journal.open(50, f"00-{TRACE}-{PARENT}-01".encode(), b"")
    journal.doing(at, CODES["query"], 70)
    reader = JournalReader(journal.path)
    assert len(reader.take().requests) == 0
    [row] = killed_rows(reader.worker, reader.open_requests(), reader.texts).to_pylist()
    assert (row["ended_by"], row["doing"], row["started"], row["ended"]) == ("killed", "query", 50, 70)
    assert row["query_ns"] is None
    [seen] = reader.open_requests()
    assert (seen["number"], seen["started"], seen["doing"], seen["since"]) == (number, 50, CODES["query"], 70)


def test_a_full_journal_drops_and_counts_and_goes_on_when_it_is_read(journal: Journal) -> None:
    for _ in range(40):
        serve(journal, [(CODES["route"], 0, 1, 2)])
    reader = JournalReader(journal.path)
    taken = len(reader.take().requests)
    assert reader.counts.begun == 40
    assert taken + reader.counts.dropped == 40
    serve(journal, [(CODES["route"], 0, 1, 2)])
    assert len(reader.take().requests) == 1


def test_segments_that_do_not_fit_follow_in_slots_of_their_own(journal: Journal) -> None:
    segments = [(CODES["route"], 0, at, at + 1) for at in range(1, SEGMENTS_INLINE + 41)]
    serve(journal, segments[:3])
    number = serve(journal, segments)
    reader = JournalReader(journal.path)
    batch = reader.take()
    rows = server_rows(reader.worker, batch.requests, reader.texts, Charges.none(2))
    found = segment_rows(batch.requests, batch.more, rows, np.array([False, True]), reader.texts).to_pylist()
    assert {row["span_id"] for row in found} == {span_id(INSTANCE, number).to_bytes(8, "big")}
    assert [(row["started"], row["ended"]) for row in found] == [
        (start, end) for _, _, start, end in segments
    ]


def test_the_culprit_is_the_place_that_cost_most(journal: Journal) -> None:
    ms = 1_000_000
    bad = serve(journal, [(CODES["route"], 0, ms, 2 * ms)])
    blocks(journal, bad, 10 * ms, 30 * ms)
    blocks(journal, bad, 31 * ms, 61 * ms, file="worse.py")
    serve(journal, [(CODES["route"], 0, 4 * ms, 5 * ms), (CODES["loop"], 0, 5 * ms, 50 * ms)])
    serve(journal, [(CODES["route"], 0, 70 * ms, 71 * ms)])
    reader = JournalReader(journal.path)
    batch = reader.take()
    steps = Steps()
    steps.add(batch.steps)
    charges = steps.charge(batch.requests, reader.texts)
    assert charges.names == [None, "bad.py:12 bad", None]
    assert charges.costs.tolist() == [-1, 20 * ms, -1]
    assert charges.numbers.tolist() == [0, bad, 0]


def test_a_request_is_not_its_own_culprit(journal: Journal) -> None:
    ms = 1_000_000
    number = serve(journal, [(CODES["loop"], 0, 5 * ms, 50 * ms)])
    blocks(journal, number, 10 * ms, 30 * ms)
    reader = JournalReader(journal.path)
    batch = reader.take()
    steps = Steps()
    steps.add(batch.steps)
    assert steps.charge(batch.requests, reader.texts).names == [None]


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "x.journal"
    other.write_bytes(b"something else" * 1000)
    with pytest.raises(ValueError, match="not a journal"):
        JournalReader(other)


def test_hex_that_is_none_is_found_out() -> None:
    texts = np.array([TRACE.encode(), b"0" * 32, b"", b"g" * 32, TRACE.upper().encode()], "S56")
    found, right = unhex(texts, slice(0, 32))
    assert right.tolist() == [True, False, False, False, False]
    assert bytes(found[0]).hex() == TRACE


def test_both_ends_make_the_same_span_ids() -> None:
    numbers = np.array([1, 2, 4096, 10**12])
    assert span_ids(INSTANCE, numbers).tolist() == [span_id(INSTANCE, int(number)) for number in numbers]


def test_a_stream_and_the_crowd_are_read_as_they_were_written(journal: Journal) -> None:
    parent = f"00-{TRACE}-{PARENT}-01".encode()
    journal.stream(-3, parent, PARENT.encode(), 0, 100, 120, 7, 200, 1000, journal.text("/echo"))
    journal.crowd(1_000, 2_000, [(journal.text("GET /x"), 600), (journal.text("GET /y"), 100)])
    reader = JournalReader(journal.path)
    batch = reader.take()
    [stream] = stream_rows(reader.worker, batch.streams, reader.texts).to_pylist()
    assert run_keys(batch.streams).tolist() == [int(TRACE[:16], 16)]
    assert (stream["kind"], stream["name"], stream["side"]) == ("websocket", "/echo", "server")
    assert (stream["opened"], stream["first"], stream["messages"], stream["closed"]) == (100, 120, 7, 200)
    assert (stream["code"], stream["parent_span_id"].hex()) == (1000, PARENT)
    crowd = crowd_rows(reader.worker, batch.crowd, reader.texts).to_pylist()
    assert [(row["owner"], row["busy_ns"]) for row in crowd] == [("GET /x", 600), ("GET /y", 100)]
    assert {(row["started"], row["ended"]) for row in crowd} == {(1_000, 2_000)}
