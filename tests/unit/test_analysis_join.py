from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.synthetic_run import BEGAN, MS, SECOND, SyntheticRun
from timesplit.analysis import join
from timesplit.analysis.facts import read_record
from timesplit.analysis.join import join_requests
from timesplit.analysis.tables import RunTables
from timesplit.errors import RunFolderError
from timesplit.parts import PARTS
from timesplit.runfolder import RunFolder, arrow_schema
from timesplit.schema import REASONS, REQUESTS

Rows = list[dict[str, Any]]
NAME = "GET /users/{user_id}"


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    """A run to be filled."""
    return SyntheticRun(tmp_path)


def joined(run: SyntheticRun) -> tuple[Rows, dict[str, int]]:
    """The run's `requests/` in the order of `intended`, and the server's rows that have no place there."""
    path = run.write_with_processes()
    with RunTables(RunFolder.open(path)) as tables:
        others = join_requests(tables, read_record(tables))
    rows: Rows = pq.read_table(path / "requests").sort_by("intended").to_pylist()
    return rows, others


def test_a_server_row_belongs_to_the_attempt_that_it_names(run: SyntheticRun) -> None:
    first, second = (run.attempt(NAME, at * MS, 10 * MS) for at in (0, 1))
    run.served(second, 3 * MS, 9 * MS, seq=2)
    run.served(first, 2 * MS, 8 * MS, seq=1)
    rows, others = joined(run)
    assert [row["seq"] for row in rows] == [1, 2]
    assert [row["reason"] for row in rows] == [None, None]
    assert others == {}


def test_without_our_mark_the_parent_tells_the_attempt(run: SyntheticRun) -> None:
    run.served(run.attempt(NAME, 0, 10 * MS), MS, 9 * MS, client_span_id=None)
    rows, _ = joined(run)
    assert rows[0]["matched"]


def test_our_mark_tells_the_attempt_behind_a_proxy_with_spans_of_its_own(run: SyntheticRun) -> None:
    run.served(run.attempt(NAME, 0, 10 * MS), MS, 9 * MS, parent_span_id=b"proxy..1")
    rows, others = joined(run)
    assert rows[0]["matched"]
    assert others == {}


def test_of_a_request_that_a_proxy_repeated_the_last_to_end_counts(run: SyntheticRun) -> None:
    attempt = run.attempt(NAME, 0, 30 * MS)
    run.served(attempt, 12 * MS, 29 * MS, seq=2)
    run.served(attempt, MS, 9 * MS, seq=1)
    rows, others = joined(run)
    assert [row["seq"] for row in rows] == [2]
    assert others == {"retried": 1}


def test_a_call_between_services_is_inner_and_not_the_answer(run: SyntheticRun) -> None:
    attempt = run.attempt(NAME, 0, 30 * MS)
    outer = run.served(attempt, MS, 20 * MS, seq=7)
    called = {"parent_span_id": b"httpx..1", "service": "upstream", "instance": "u"}
    run.served(attempt, 5 * MS, 15 * MS, **called)
    run.served(attempt, 6 * MS, 14 * MS, **(called | {"client_span_id": None}))
    rows, others = joined(run)
    assert rows[0]["server_span_id"] == outer["span_id"]
    assert others == {"inner": 2}


def test_a_call_made_after_the_answer_is_inner_too(run: SyntheticRun) -> None:
    attempt = run.attempt(NAME, 0, 30 * MS)
    run.served(attempt, MS, 20 * MS, seq=7)
    run.served(attempt, 40 * MS, 60 * MS, parent_span_id=b"httpx..1", service="upstream")
    rows, others = joined(run)
    assert rows[0]["seq"] == 7
    assert others == {"inner": 1}


def test_a_server_row_without_its_client_row_is_stray(run: SyntheticRun) -> None:
    run.served(run.attempt(NAME, 0, 10 * MS), MS, 9 * MS)
    known = run.attempt("GET /other", MS, 10 * MS)
    run.served(known, 2 * MS, 9 * MS, client_span_id=b"gone...1", parent_span_id=b"gone...1")
    run.served(known | {"trace_id": b"x" * 16}, 2 * MS, 9 * MS)
    _, others = joined(run)
    assert others == {"stray": 2}


UNMATCHED: list[tuple[dict[str, Any], str]] = [
    ({"status": None, "done": None, "error": "refused"}, "refused"),
    ({"status": 503, "error": "refused"}, "refused"),
    ({"status": None, "done": None, "error": "reset"}, "reset"),
    ({"status": None, "done": None, "error": "timeout"}, "timeout"),
    ({"status": None, "done": None, "error": "unfinished"}, "unfinished"),
    ({"status": None, "done": None, "sent": None, "error": "other"}, "other"),
    ({"status": None, "done": None, "error": None}, "unfinished"),
    ({}, "lost"),
    ({"status": 500, "error": "status"}, "lost"),
    ({"error": "failed: wrong name"}, "lost"),
]


def test_every_attempt_without_a_server_row_has_a_reason(run: SyntheticRun) -> None:
    for at, (columns, _) in enumerate(UNMATCHED):
        run.attempt(NAME, at * MS, 10 * MS, **columns)
    run.served(run.attempt(NAME, SECOND, 10 * MS), SECOND + MS, SECOND + 9 * MS)
    rows, _ = joined(run)
    assert [row["reason"] for row in rows] == [*(reason for _, reason in UNMATCHED), None]
    assert {reason for _, reason in UNMATCHED} <= REASONS.keys()


def test_what_never_has_a_server_row_is_untraced(run: SyntheticRun) -> None:
    run.served(run.attempt(NAME, 0, 10 * MS), MS, 9 * MS)
    run.attempt("GET /static", MS, 10 * MS)
    rows, _ = joined(run)
    assert [row["reason"] for row in rows] == [None, "untraced"]


def test_where_nobody_makes_server_rows_all_is_untraced(run: SyntheticRun) -> None:
    run.attempt(NAME, 0, 10 * MS)
    rows, _ = joined(run)
    assert rows[0]["reason"] == "untraced"


def test_where_a_worker_made_server_rows_and_none_arrived_all_is_lost(run: SyntheticRun) -> None:
    run.attempt(NAME, 0, 10 * MS)
    run.process("other", "worker", written=1, forwarded=0, dropped=1)
    rows, _ = joined(run)
    assert rows[0]["reason"] == "lost"


def test_a_connection_reset_as_a_worker_is_killed_is_charged_to_that(tmp_path: Path) -> None:
    kill = {"at": 20, "process": "service-worker", "signal": "KILL", "restart": False, "done_at": 20.1}
    run = SyntheticRun(tmp_path, faults=[kill])
    for at in (1, 19, 21):
        run.attempt(NAME, at * SECOND, None, error="reset")
    rows, _ = joined(run)
    assert [row["reason"] for row in rows] == ["reset", "killed", "reset"]


def test_the_route_comes_from_the_server_and_else_from_most_rows_of_the_name(run: SyntheticRun) -> None:
    for at, route in enumerate(("/a/{id}", "/a/{id}", "/b/{id}")):
        run.served(run.attempt("GET /thing", at * MS, MS), at * MS, at * MS + 1, http_route=route)
    run.attempt("GET /thing", 10 * MS, MS)
    run.served(run.attempt("GET /thing", 11 * MS, MS, status=404), 11 * MS, 12 * MS, http_route=None)
    run.attempt("GET /silent", 12 * MS, MS)
    rows, _ = joined(run)
    routes = [row["route"] for row in rows]
    assert routes == [
        "GET /a/{id}",
        "GET /a/{id}",
        "GET /b/{id}",
        "GET /a/{id}",
        "GET /a/{id}",
        "GET /silent",
    ]


def test_of_too_many_names_the_rarest_are_other(run: SyntheticRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "MAX_NAMES", 2)
    for at, name in enumerate(["GET /a"] * 3 + ["GET /b"] * 2 + ["GET /c"]):
        run.attempt(name, at * MS, MS)
    rows, _ = joined(run)
    assert [row["route"] for row in rows] == ["GET /a"] * 3 + ["GET /b"] * 2 + ["other"]


def test_the_warm_up_is_cut_off_where_requests_were_due(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, warmup_s=5)
    for at in (0, 5 * SECOND - 1, 5 * SECOND):
        run.attempt(NAME, at, 10 * SECOND)
    rows, _ = joined(run)
    assert [row["warm"] for row in rows] == [False, False, True]


def test_clocks_of_two_hosts_are_brought_together_by_their_anchors(tmp_path: Path) -> None:
    run, ahead = SyntheticRun(tmp_path, warmup_s=5), 777 * SECOND
    there = {"boot_id": "another", "monotonic": BEGAN["monotonic"] + ahead}
    run.process("there", "generator", written=1, **there)
    run.process("inner", "worker", written=1, **there)
    run.attempt(NAME, 4 * SECOND, MS)
    run.attempt(NAME, 4 * SECOND + ahead, MS, generator="there")
    attempt = run.attempt(NAME, 6 * SECOND + ahead, 20 * MS, generator="there")
    run.served(attempt, 6 * SECOND, 6 * SECOND + 10 * MS, seq=5)
    # Its clock reads later than that of the call it serves, which ended after it.
    run.served(attempt, 6 * SECOND + ahead, 6 * SECOND + ahead + MS, instance="inner", service="upstream")
    rows, others = joined(run)
    assert [row["warm"] for row in rows] == [False, False, True]
    assert rows[2]["seq"] == 5
    assert others == {"inner": 1}


def test_what_spans_tell_is_taken_over_and_null_stays_null(run: SyntheticRun) -> None:
    attempt = run.attempt(NAME, 0, 10 * MS)
    run.served(attempt, MS, 9 * MS, query_ns=4 * MS, cache_ns=0, query_count=3, status=201)
    rows, _ = joined(run)
    row = rows[0]
    assert (row["query_ns"], row["cache_ns"], row["upstream_ns"], row["loop_ns"]) == (4 * MS, 0, None, None)
    assert (row["query_count"], row["status"], row["server_status"]) == (3, 200, 201)
    assert (row["response_ns"], row["service_ns"], row["span_ns"]) == (10 * MS, 10 * MS, 8 * MS)


@pytest.mark.parametrize(
    ("arrived", "network", "unattributed"),
    [(3 * MS, 4 * MS, 0), (None, None, 5 * MS)],
    ids=["known", "unknown"],
)
def test_time_between_client_and_server_is_network_where_edges_are_known(
    run: SyntheticRun, arrived: int | None, network: int | None, unattributed: int
) -> None:
    began = BEGAN["monotonic"]
    attempt = run.attempt(NAME, 0, 20 * MS, sent=began + MS, connect_ns=MS)
    stamp = None if arrived is None else began + arrived
    run.served(attempt, 4 * MS, 17 * MS, arrived=stamp)
    rows, _ = joined(run)
    row = rows[0]
    assert (row["late_ns"], row["connect_ns"]) == (MS, MS)
    assert (row["network_ns"], row["unattributed_ns"]) == (network, unattributed)
    on_server = row["ended"] - (row["arrived"] or row["started"])
    parts = [row["late_ns"], row["connect_ns"], row["network_ns"] or 0, row["unattributed_ns"], on_server]
    assert sum(parts) == row["response_ns"]


def test_an_attempt_that_was_never_answered_has_no_times(run: SyntheticRun) -> None:
    run.attempt(NAME, 0, None, error="timeout")
    rows, _ = joined(run)
    assert [rows[0][name] for name in ("response_ns", "service_ns", "span_ns", "network_ns")] == [None] * 4


def test_joined_requests_have_the_columns_of_the_contract(run: SyntheticRun) -> None:
    run.served(run.attempt(NAME, 0, 10 * MS), MS, 9 * MS)
    joined(run)
    written = pq.read_schema(run.folder.files(REQUESTS)[0])
    assert written.equals(arrow_schema(REQUESTS))
    assert len(set(written.names)) == len(written.names)
    assert {part.column for part in PARTS} <= set(written.names)


def test_joining_again_replaces_what_was_there(run: SyntheticRun) -> None:
    run.attempt(NAME, 0, 10 * MS)
    first, _ = joined(run)
    with RunTables(RunFolder.open(run.folder.path)) as tables:
        join_requests(tables, read_record(tables))
    assert pq.read_table(run.folder.path / "requests").to_pylist() == first


def test_a_run_without_client_rows_is_one_clear_error(run: SyntheticRun) -> None:
    path = run.write()
    with RunTables(RunFolder.open(path)) as tables, pytest.raises(RunFolderError, match="no client rows"):
        join_requests(tables, read_record(tables))
