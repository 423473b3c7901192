import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.synthetic_run import MS, SECOND, SyntheticRun, burst_run, jobs_run
from timesplit.analysis.summarise import summarise
from timesplit.analysis.summary import Summary
from timesplit.report.terminal import print_summary


@pytest.fixture(scope="module")
def bursts(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """Ten bursts of 100 on the four waiting routes."""
    return summarise(burst_run(tmp_path_factory.mktemp("bursts"), sizes=(100,)))


def printed(summary: Summary, width: int, *, colour: bool = False) -> str:
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=colour, highlight=False)
    print_summary(summary, console)
    return output.getvalue()


@pytest.mark.parametrize("width", [50, 80, 100, 130, 200])
def test_figures_are_whole_at_any_width(bursts: Summary, width: int) -> None:
    text = printed(bursts, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    for figure in ("5,103", "4,848", "2,552", "51.0"):
        assert figure in text


def test_a_wide_terminal_has_a_line_for_each_route(bursts: Summary) -> None:
    line = next(line for line in printed(bursts, 130).splitlines() if line.startswith("  GET /blocking"))
    assert line.split()[2:4] == ["1,000", "0"]
    assert line.split()[-1] == "5,103"


def test_a_narrow_terminal_has_a_line_for_each_who_speaks(bursts: Summary) -> None:
    lines = [line.strip() for line in printed(bursts, 70).splitlines()]
    at = next(place for place, line in enumerate(lines) if line.startswith("GET /blocking-in-async   "))
    assert [line.split("  ")[0] for line in lines[at + 1 : at + 4]] == ["test", "span", "client"]


def test_no_control_character_and_no_markup_of_names_reaches_the_terminal(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    name = "GET /\x1b]0;title\x07\x1b[2J[red]x[/red]\u202e\x9b31m"
    row = run.attempt(name, 0, 10 * MS)
    run.served(row, MS, 9 * MS)
    text = printed(summarise(run.write_with_processes()), 120)
    assert not any(each in text for each in "\x1b\x07\x9b\u202e")
    assert "[red]x[/red]" in text


def test_too_few_samples_are_marked(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    for at in range(80):
        run.attempt("GET /a", at * SECOND, 10 * MS)
    line = printed(summarise(run.write()), 120).partition("  GET /a")[2].splitlines()[0]
    assert line.split()[-3:] == ["10.0", "10.0~", "10.0"]


def test_failures_notes_and_jobs_are_told(tmp_path: Path) -> None:
    assert "200 posted, 163 finished, 0 dead letters, 0 open, 37 lost" in printed(
        summarise(jobs_run(tmp_path)), 120
    )
    run = SyntheticRun(tmp_path, scenario="failing")
    run.attempt("GET /a", 0, 10 * MS)
    run.attempt("GET /a", SECOND, None, error="timeout")
    text = printed(summarise(run.write(lasted=None)), 120)
    assert "Note: This run was cut short" in text
    assert "without one: timeout 1, untraced 1" in text
