import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.synthetic_run import BEGAN, MS, SECOND, SyntheticRun, burst_run, jobs_run, mixed_run
from timesplit.analysis.summarise import summarise
from timesplit.analysis.summary import RouteSummary, Summary
from timesplit.errors import RunFolderError
from timesplit.runfolder import RunFolder

NAME = "GET /users/{user_id}"


@pytest.fixture(scope="module")
def bursts(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """Ten bursts of 100 on the four waiting routes."""
    return summarise(burst_run(tmp_path_factory.mktemp("bursts"), sizes=(100,)))


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mix at 150 requests per second with failures and lost spans."""
    return mixed_run(tmp_path_factory.mktemp("mixed"), seconds=20)


def route(summary: Summary, name: str) -> RouteSummary:
    return next(row for row in summary.routes if row.route == name)


def test_the_trace_and_the_client_tell_different_stories_of_a_blocked_loop(bursts: Summary) -> None:
    row = route(bursts, "GET /blocking-in-async")
    assert row.span
    assert row.response
    assert row.in_process
    assert row.bursts
    assert row.span.max_ns == 51 * MS
    assert row.response.max_ns == pytest.approx(5_100 * MS, rel=0.01)
    assert row.in_process.median_ns == pytest.approx(51 * MS, rel=0.02)
    assert row.in_process.wall_median_ns == pytest.approx(5_100 * MS, rel=0.01)
    assert row.bursts.at_once == pytest.approx(1, rel=0.01)
    assert (row.bursts.wall.n, row.bursts.count, row.bursts.size) == (10, 10, 100)
    assert row.rate == pytest.approx(100 / 5.1, rel=0.01)
    assert bursts.headline.route == row.route


def test_thread_routes_answer_in_waves_of_their_tokens(bursts: Summary) -> None:
    for name in ("GET /sync-blocking", "GET /offloaded-blocking"):
        found = route(bursts, name).bursts
        assert found
        assert found.waves
        assert found.waves.size == 40
        assert found.waves.step_ns == pytest.approx(51 * MS, rel=0.03)
    alike = route(bursts, "GET /async-sleep").bursts
    assert alike
    assert alike.waves is None


def test_bursts_have_intervals_over_bursts(bursts: Summary) -> None:
    row = route(bursts, "GET /async-sleep")
    assert row.response
    assert row.bursts
    for figure in (row.response.p95, row.response.p99, row.bursts.wall.p50):
        assert figure.interval
        assert (figure.interval.unit, figure.interval.blocks) == ("bursts", 10)
        assert figure.interval.low_ns <= figure.value_ns <= figure.interval.high_ns


def test_figures_are_those_of_the_rows(mixed_folder: Path) -> None:
    summary = summarise(mixed_folder)
    rows = pq.read_table(mixed_folder / "requests").to_pylist()
    for row in summary.routes:
        own = [each for each in rows if each["route"] == row.route and each["warm"]]
        good = sorted(each["response_ns"] for each in own if each["error"] is None)
        gaps = [
            each["response_ns"] - each["span_ns"] for each in own if not each["error"] and each["span_ns"]
        ]
        assert row.response
        assert row.gap
        assert (row.requests, row.failed, row.response.n) == (len(own), len(own) - len(good), len(good))
        assert row.response.p50.value_ns == good[(len(good) + 1) // 2 - 1]
        assert row.gap.max_ns == max(gaps)
        assert row.failed == sum(row.failures.values())
        assert row.unfinished == 0
    rates = [row.rate for row in summary.routes if row.rate]
    assert sum(rates) == pytest.approx(150, rel=0.1)


def test_parts_are_described_where_they_are_known_and_missing_where_not(mixed_folder: Path) -> None:
    row = route(summarise(mixed_folder), "GET /users/{user_id}/orders-n-plus-one")
    assert row.queries == 21
    assert row.parts["query"].p50_ns > 0
    assert row.parts["cache"].max_ns == 0
    assert "loop" not in row.parts


def test_every_row_without_a_partner_is_accounted_for(mixed_folder: Path) -> None:
    found = summarise(mixed_folder).completeness
    assert found.is_complete
    assert found.attempts == found.client_rows == found.matched + sum(found.unmatched.values())
    assert found.unmatched["lost"] == found.spans_dropped
    assert found.spans_made == found.server_rows + found.unmatched["lost"]
    assert found.answered == found.matched + found.unmatched["lost"]


def test_losses_that_nobody_counted_are_said(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    run.served(run.attempt(NAME, 0, 10 * MS), MS, 9 * MS)
    run.attempt(NAME, SECOND, 10 * MS)
    summary = summarise(run.write_with_processes())
    assert (summary.completeness.lost_uncounted, summary.completeness.is_complete) == (1, False)
    assert any("1 answered requests have no server record" in note for note in summary.notes)


def test_attempts_that_left_no_row_are_said(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    run.served(run.attempt(NAME, 0, 10 * MS), MS, 9 * MS)
    run.process("g", "generator", written=3)
    summary = summarise(run.write())
    assert not summary.completeness.is_complete
    assert any("began 3 attempts, and 1 are recorded" in note for note in summary.notes)


def test_failures_have_no_part_in_the_durations(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    for at in range(10):
        run.attempt(NAME, at * SECOND, 10 * MS)
    run.attempt(NAME, 10 * SECOND, MS // 10, status=503, error="refused")
    run.attempt(NAME, 11 * SECOND, 9 * SECOND, status=500, error="status")
    row = route(summarise(run.write_with_processes()), NAME)
    assert row.response
    assert (row.requests, row.failed, row.response.n) == (12, 2, 10)
    assert row.response.max_ns == 10 * MS
    assert row.failures == {"refused": 1, "status": 1}


def test_what_the_end_of_the_run_cut_off_did_not_fail(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    run.attempt(NAME, 0, 10 * MS)
    run.attempt(NAME, SECOND, None, error="unfinished")
    summary = summarise(run.write_with_processes())
    row = route(summary, NAME)
    assert (row.requests, row.failed, row.failures, row.unfinished) == (2, 0, {}, 1)
    assert summary.headline.subject == "tail"
    assert summary.completeness.unmatched == {"unfinished": 1, "untraced": 1}


def test_the_warm_up_is_cut_off_the_figures_and_kept_in_the_series(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, warmup_s=2)
    for at in range(4):
        run.attempt(NAME, at * SECOND, (100 if at < 2 else 10) * MS)
    row = route(summarise(run.write_with_processes()), NAME)
    assert row.response
    assert row.windows
    assert (row.requests, row.response.max_ns) == (2, 10 * MS)
    assert sum(row.windows.counts) == 4


def test_a_burst_in_which_a_request_failed_is_counted_apart(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, model="bursts", stages=["burst-3"])
    for burst in range(8):
        for rank in range(3):
            failed = {"error": "timeout", "status": None} if (burst, rank) == (4, 1) else {}
            run.attempt(NAME, burst * SECOND, (rank + 1) * MS, stage="burst-3", burst=burst, **failed)
    found = route(summarise(run.write_with_processes()), NAME).bursts
    assert found
    assert (found.count, found.incomplete, found.size) == (7, 1, 3)
    assert found.response_ns == (MS, 2 * MS, 3 * MS)


def test_stages_keep_the_order_of_the_run_and_the_slowest_route_comes_first(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, stages=["second", "first"])
    for stage, name, response in (("first", "GET /a", 1), ("second", "GET /b", 1), ("second", "GET /c", 2)):
        run.attempt(name, 0, response * MS, stage=stage)
    routes = [(row.stage, row.route) for row in summarise(run.write_with_processes()).routes]
    assert routes == [("second", "GET /c"), ("second", "GET /b"), ("first", "GET /a")]


def test_jobs_are_finished_dead_open_or_lost(tmp_path: Path) -> None:
    background, queue = summarise(jobs_run(tmp_path)).jobs
    assert (queue.posted, queue.finished, queue.dead, queue.open, queue.lost) == (200, 199, 1, 0, 0)
    assert (queue.retried, queue.repeated) == (4, 0)
    assert (background.finished, background.lost) == (163, 37)
    assert queue.turnaround
    assert queue.turnaround.n == 199
    assert 300 * MS < queue.turnaround.p50.value_ns < 390 * MS


def test_streams_are_told_by_each_side(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    run.attempt(NAME, 0, 10 * MS)
    for number, error in enumerate([None, None, "reset"]):
        opened = BEGAN["monotonic"] + number * SECOND
        ids = {"trace_id": bytes(15) + bytes([number]), "span_id": bytes(7) + bytes([number])}
        told = {
            "name": "WS /stream/echo",
            "stage": "steady",
            "kind": "websocket",
            "side": "client",
            "messages": 5,
        }
        closed = None if error else opened + SECOND
        run.add("streams", **ids, **told, opened=opened, first=opened + 5 * MS, closed=closed, error=error)
    found = summarise(run.write_with_processes()).streams[0]
    assert (found.opened, found.closed, found.messages, found.failures) == (3, 2, 15, {"reset": 1})
    assert found.first
    assert found.lifetime
    assert (found.first.max_ns, found.lifetime.n) == (5 * MS, 2)


def test_a_run_whose_generator_was_killed_is_reported_as_cut_short(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    run.attempt(NAME, 3 * SECOND, 500 * MS)
    summary = summarise(run.write(lasted=None))
    assert summary.run.ended is None
    assert summary.run.lasted_ns == 3_500 * MS
    assert any("cut short" in note for note in summary.notes)


def test_a_run_within_its_warm_up_has_no_figures(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, warmup_s=5)
    run.attempt(NAME, SECOND, 10 * MS)
    summary = summarise(run.write_with_processes())
    assert summary.routes[0].requests == 0
    assert summary.routes[0].response is None
    assert "warm-up" in summary.headline.text


def cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def garbled(content: bytes) -> bytes:
    """The same with a sound footer and other bytes before it."""
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return bytes(each ^ 0xFF for each in content[:footer]) + content[footer:]


def of_another_table(content: bytes) -> bytes:
    changed = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(content)).drop_columns(["intended"]), changed)
    return changed.getvalue()


@pytest.mark.parametrize("damage", [cut_in_half, garbled, of_another_table, bytes.lower, lambda _: b""])
def test_a_damaged_file_is_named_and_nothing_else_is_lost(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    run = SyntheticRun(tmp_path)
    for at in range(3):
        run.attempt(NAME, at * SECOND, 10 * MS)
    path = run.write()
    good = next((path / "client").glob("*.parquet"))
    good.with_name("damaged-000000.parquet").write_bytes(damage(good.read_bytes()))
    summary = summarise(path)
    assert summary.completeness.client_rows == 3
    assert not summary.completeness.is_complete
    assert any("client/damaged-000000.parquet: left out" in note for note in summary.notes)


def test_names_of_folders_are_not_patterns(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "it's all * of those?")
    run.attempt(NAME, 0, 10 * MS)
    path = run.write()
    shutil.copytree(tmp_path / "it's all * of those?", tmp_path / "it's all two of those!")
    assert summarise(path).completeness.client_rows == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param({"schema": 99}, "schema 99", id="another schema"),
        pytest.param({"began": None}, "`began`", id="no beginning"),
        pytest.param({"began": {"utc": 1}}, "`monotonic`", id="half a beginning"),
        pytest.param({"model": None}, "`model`", id="no model"),
        pytest.param({"users": "many"}, "`users`", id="of another type"),
    ],
)
def test_a_run_json_that_cannot_be_used_is_one_clear_error(
    tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    run = SyntheticRun(tmp_path)
    run.attempt(NAME, 0, 10 * MS)
    path = run.write()
    meta = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(meta | change))
    with pytest.raises(RunFolderError, match=complaint) as found:
        summarise(path)
    assert "\n" not in str(found.value)


def test_no_run_folder_at_all_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        summarise(tmp_path)


def test_a_report_leaves_nothing_behind_but_its_files(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    run.attempt(NAME, 0, 10 * MS)
    path = run.write()
    before = {file.name for file in path.iterdir()}
    summarise(path)
    assert {file.name for file in path.iterdir()} - before == {"requests"}
    assert RunFolder(path).meta()["key"] == "00c0ffee00c0ffee"
