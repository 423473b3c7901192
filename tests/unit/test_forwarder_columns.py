import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.otlp_spans import ANCHOR, KEY, MS, TRACE, UTC, Value, end_span, request_of, server_span
from timesplit import spanfacts
from timesplit.clocks import Anchor
from timesplit.forwarder import columns
from timesplit.forwarder.assembly import Assembly
from timesplit.forwarder.columns import Columns
from timesplit.forwarder.folder import Folder
from timesplit.forwarder.spans import Process, read_spans
from timesplit.runfolder import RunFolder
from timesplit.schema import HOSTS, SERVER, STREAMS, Table

BEGAN = Anchor(monotonic=4_000 * MS, utc=UTC - 1_000 * MS)
ME = Process("f0", "forwarder", 7, "vm", "boot", None, frozenset(), "{}")


class Forwarder:
    """Assembly and columns together, as the process has them, with a clock that stands still."""

    def __init__(self, root: Path, began: Anchor = BEGAN) -> None:
        self.root = root
        self.assembly = Assembly(began)
        self.columns = Columns(root, ME, began)
        self.now = UTC + 1_000 * MS

    def take(self, *spans: Any, **resource: Value) -> None:
        for process, trace_id, record in read_spans(request_of(*spans, **resource)):
            self.assembly.add(process, trace_id, record, 0.0)

    def flush(self, *, last: bool = False) -> None:
        self.now += 1_000 * MS
        self.columns.add(self.assembly.finished(0.0, everything=True))
        self.columns.flush(self.now, self.assembly.made, {"late": self.assembly.counters.late}, last=last)

    def rows(self, table: Table, folder: Path | None = None) -> list[dict[str, Any]]:
        files = sorted(((folder or self.root / "unclaimed") / table.name).glob("*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture
def forwarder(tmp_path: Path) -> Forwarder:
    return Forwarder(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return RunFolder.create(tmp_path, "scenario", KEY).path


def last_hosts(forwarder: Forwarder, run: Path) -> dict[str, dict[str, Any]]:
    rows = sorted(forwarder.rows(HOSTS, run), key=lambda row: row["monotonic"])
    return {row["role"]: row for row in rows}


def test_a_request_goes_to_the_run_that_its_trace_id_names(forwarder: Forwarder, run: Path) -> None:
    forwarder.take(server_span(), server_span(b"stranger", trace_id=b"somebody's trace", seq=1))
    forwarder.flush()

    assert [row["span_id"] for row in forwarder.rows(SERVER, run)] == [b"server.1"]
    assert [row["span_id"] for row in forwarder.rows(SERVER)] == [b"stranger"]


def test_a_run_that_begins_later_is_found_too(forwarder: Forwarder, tmp_path: Path) -> None:
    forwarder.take(server_span(b"before.1", trace_id=b"another trace..."))
    forwarder.flush()
    run = RunFolder.create(tmp_path, "later", KEY).path
    forwarder.take(server_span(seq=1))
    forwarder.flush()

    assert len(forwarder.rows(SERVER, run)) == 1


def test_streams_have_a_table_of_their_own(forwarder: Forwarder, run: Path) -> None:
    forwarder.take(
        server_span(b"socket.1", timesplit__stream="websocket", seq=0),
        server_span(b"events.1", timesplit__stream="sse", seq=1),
    )
    forwarder.flush()

    assert [row["kind"] for row in forwarder.rows(STREAMS, run)] == ["websocket", "sse"]
    assert [row["span_id"] for row in forwarder.rows(SERVER, run)] == [b"events.1"]
    assert last_hosts(forwarder, run)["worker"]["forwarded"] == 2


def test_hosts_says_how_complete_the_run_is(forwarder: Forwarder, run: Path) -> None:
    forwarder.take(server_span(b"server.1", seq=0), server_span(b"server.2", seq=3))
    forwarder.flush()

    worker = last_hosts(forwarder, run)["worker"]

    assert (worker["written"], worker["forwarded"], worker["dropped"]) == (4, 2, 2)
    assert (worker["instance"], worker["pid"], worker["host"], worker["boot_id"]) == ("a1", 42, "vm", "boot")
    assert json.loads(worker["configuration"]) == {"traces": "otel", "armed": ["cache", "query", "upstream"]}


def test_the_tail_is_known_once_the_worker_has_ended(forwarder: Forwarder, run: Path) -> None:
    forwarder.take(server_span(seq=0))
    forwarder.flush()
    forwarder.take(end_span(3))
    forwarder.flush()

    worker = last_hosts(forwarder, run)["worker"]
    assert (worker["written"], worker["forwarded"], worker["dropped"]) == (3, 1, 2)


def test_a_worker_that_began_before_the_forwarder_has_not_lost_what_came_before(
    tmp_path: Path, run: Path
) -> None:
    forwarder = Forwarder(tmp_path, began=Anchor(monotonic=6_000 * MS, utc=UTC + 1_000 * MS))
    forwarder.take(server_span(seq=500))
    forwarder.flush()

    assert last_hosts(forwarder, run)["worker"]["dropped"] == 0


def test_the_row_of_a_process_that_was_read_last_is_the_one_with_the_latest_clock(
    forwarder: Forwarder, run: Path
) -> None:
    for seq in range(3):
        forwarder.take(server_span(bytes([9] * 7 + [seq]), seq=seq))
        forwarder.flush()

    rows = [row for row in forwarder.rows(HOSTS, run) if row["role"] == "worker"]

    assert [row["forwarded"] for row in sorted(rows, key=lambda row: row["monotonic"])] == [1, 2, 3]
    offset = ANCHOR[spanfacts.ANCHOR_MONOTONIC] - ANCHOR[spanfacts.ANCHOR_UTC]
    assert {row["monotonic"] - row["utc"] for row in rows} == {offset}


def test_nothing_new_is_nothing_written(forwarder: Forwarder, run: Path) -> None:
    forwarder.take(server_span())
    forwarder.flush()
    before = sorted(run.rglob("*"))
    forwarder.flush()

    assert sorted(run.rglob("*")) == before


def test_the_forwarder_tells_its_own_counts_when_it_ends(forwarder: Forwarder, run: Path) -> None:
    forwarder.take(server_span())
    forwarder.flush()
    forwarder.assembly.counters.late = 5
    forwarder.flush(last=True)

    mine = last_hosts(forwarder, run)["forwarder"]
    assert (mine["written"], mine["forwarded"], mine["dropped"]) == (1, 1, 0)
    assert json.loads(mine["configuration"]) == {"late": 5, "requests_not_written": 0}


def test_what_cannot_be_written_waits(forwarder: Forwarder, run: Path) -> None:
    obstacle = run / "server"
    obstacle.write_text("no folder")
    forwarder.take(server_span())
    forwarder.flush()
    assert last_hosts(forwarder, run)["forwarder"]["dropped"] == 1
    obstacle.unlink()
    forwarder.flush()

    assert len(forwarder.rows(SERVER, run)) == 1
    assert last_hosts(forwarder, run)["forwarder"]["dropped"] == 0
    assert last_hosts(forwarder, run)["worker"]["forwarded"] == 1


def test_what_waits_is_bounded_the_oldest_goes(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "run", "f0", rows_held=2)
    (tmp_path / "run").write_text("no folder")
    for seq in range(4):
        assembly = Assembly(BEGAN)
        for process, trace_id, record in read_spans(request_of(server_span(bytes([9] * 7 + [seq]), seq=seq))):
            assembly.add(process, trace_id, record, 0.0)
        folder.add(next(assembly.finished(0.0, everything=True)))
        assert list(folder.write()) == []
    (tmp_path / "run").unlink()

    assert [one.seq for one in folder.write()] == [2, 3]
    assert folder.received - folder.written == 2


def test_requests_that_no_run_marks_are_bounded_the_oldest_files_go(
    forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "UNCLAIMED_FILES", 3)
    for seq in range(5):
        span_id = bytes([9] * 7 + [seq])
        forwarder.take(server_span(span_id, trace_id=b"somebody" + span_id, seq=seq))
        forwarder.flush()

    assert [row["seq"] for row in forwarder.rows(SERVER)] == [2, 3, 4]


def test_the_bytes_of_unclaimed_requests_are_bounded_too(
    forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "UNCLAIMED_BYTES", 1)
    forwarder.take(server_span(trace_id=b"somebody's trace"))
    forwarder.flush()

    assert forwarder.rows(SERVER) == []


def test_a_service_has_no_more_than_a_thousand_routes(forwarder: Forwarder, run: Path) -> None:
    spans = [
        server_span(i.to_bytes(8, "big"), trace_id=TRACE, seq=i, http__route=f"/raw/{i}")
        for i in range(1, 1_003)
    ]
    forwarder.take(*spans)
    forwarder.flush()

    routes = [row["http_route"] for row in forwarder.rows(SERVER, run)]
    assert len(set(routes)) == 1_001
    assert routes.count("other") == 2


INTS = st.integers(-(1 << 63), (1 << 63) - 1)
NAMES = st.sampled_from(
    [
        *("timesplit.seq", "timesplit.first", "timesplit.messages", "timesplit.code", "timesplit.stream"),
        *("timesplit.ended_by", "timesplit.anchor.utc", "timesplit.anchor.monotonic", "timesplit.armed"),
        *("http.route", "http.request.method", "http.response.status_code", "url.scheme", "db.system.name"),
        *("service.name", "service.instance.id", "process.pid", "db.query.text"),
    ]
)
VALUES = st.dictionaries(NAMES, INTS | st.text() | st.lists(st.text(), max_size=2))


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spans=st.lists(
        st.builds(
            server_span,
            st.binary(min_size=8, max_size=8),
            start=INTS.filter(lambda i: 0 <= UTC + i < 1 << 64),
            end=INTS.filter(lambda i: 0 <= UTC + i < 1 << 64),
            parent=st.sampled_from([b"", b"caller.1", b"odd"]),
            trace_id=st.sampled_from([TRACE, b"", b"somebody's trace"]),
        ),
        max_size=4,
    ),
    attributes=VALUES,
    resource=VALUES,
)
def test_whatever_comes_rows_can_be_made_of_it(
    tmp_path: Path, run: Path, spans: list[Any], attributes: dict[str, Value], resource: dict[str, Value]
) -> None:
    for span in spans:
        told = request_of(**{name.replace(".", "__"): value for name, value in attributes.items()})
        span.attributes.extend(told.resource_spans[0].resource.attributes)
    forwarder = Forwarder(tmp_path)
    last = end_span((1 << 63) - 1)
    forwarder.take(*spans, last, **{name.replace(".", "__"): value for name, value in resource.items()})
    forwarder.flush(last=True)

    assert forwarder.columns.requests_not_written == 0
