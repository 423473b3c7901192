import re
from pathlib import Path

import pytest

from tests.synthetic_run import MS, SECOND, SyntheticRun, burst_run
from timesplit.analysis.summarise import summarise
from timesplit.analysis.summary import Summary
from timesplit.report import plots
from timesplit.report.plots import BOTTOM, LEFT, RIGHT, TOP, Panel


@pytest.fixture(scope="module")
def bursts(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """Ten bursts of 100 on the four waiting routes."""
    return summarise(burst_run(tmp_path_factory.mktemp("bursts"), sizes=(100,)))


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def curve(panel: Panel, kind: str) -> list[tuple[float, float]]:
    return points(next(each.path for each in panel.curves if each.kind == kind))


def all_panels(summary: Summary) -> list[Panel]:
    routes, run = summary.routes, summary.run
    return [
        *plots.answers_of_bursts(routes),
        *plots.latency_by_percentile(routes),
        *plots.latency_over_time(routes, run.warmup_ns, run.lasted_ns),
    ]


def test_nothing_is_drawn_outside_its_panel(bursts: Summary, tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, warmup_s=5)
    for at in range(60):
        run.attempt("GET /a", at * SECOND, (at + 1) ** 3 * 1000)
    for summary in (bursts, summarise(run.write_with_processes())):
        panels = all_panels(summary)
        assert panels
        for panel in panels:
            drawn = [point for each in panel.curves for point in points(each.path)]
            assert all(LEFT - 0.1 <= x <= RIGHT + 0.1 and TOP - 0.1 <= y <= BOTTOM + 0.1 for x, y in drawn)
            assert all(LEFT <= tick.at <= RIGHT + 0.1 for tick in panel.x_ticks)
            assert all(TOP - 0.1 <= tick.at <= BOTTOM + 0.1 for tick in panel.y_ticks)


def test_the_i_th_answer_of_a_blocked_burst_climbs_and_its_span_stays_flat(bursts: Summary) -> None:
    panel = next(each for each in plots.answers_of_bursts(bursts.routes) if "blocking-in-async" in each.title)
    client, span = curve(panel, "client"), curve(panel, "span")
    assert len(client) == len(span) == 100
    assert client[0][1] - client[-1][1] > 0.9 * (BOTTOM - TOP)
    assert abs(span[0][1] - span[-1][1]) < 1
    assert panel.readings[0][1].startswith("answer 1: client 5")


def test_a_hole_in_a_series_is_not_bridged(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    for at in [*range(10), *range(20, 30)]:
        run.attempt("GET /a", at * SECOND, 10 * MS)
    summary = summarise(run.write_with_processes())
    panel = plots.latency_over_time(summary.routes, 0, summary.run.lasted_ns)[0]
    assert [each.path.count("M") for each in panel.curves] == [2, 2]


def test_a_single_request_can_be_drawn(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    run.attempt("GET /a", 0, 0)
    assert len(all_panels(summarise(run.write_with_processes()))) == 2


def test_without_figures_nothing_is_drawn(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    run.attempt("GET /a", 0, None, error="timeout")
    assert all_panels(summarise(run.write_with_processes())) == []
