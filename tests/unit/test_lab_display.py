import io
from dataclasses import replace

import pytest
from rich.console import Console

from timesplit.lab.display import Display, Progress

LINE = {
    "run": "/runs/one",
    "elapsed": 12.3,
    "stage": "burst-100",
    "begun": 1300,
    "answered": 1200,
    "errors": 3,
    "rate": 431.2,
    "p99_ms": 5012.4,
    "added later": 1,
}
PROGRESS = Progress.from_json(LINE)


def test_progress_is_told_with_the_time_that_is_left() -> None:
    assert PROGRESS.text(30) == "burst-100 · 431/s · p99 so far 5,012 ms · 3 errors · 18 s left"


def test_where_the_end_is_unknown_the_time_so_far_is_told() -> None:
    assert PROGRESS.text(None).endswith(" · 3 errors · 12 s")


def test_no_time_is_left_once_the_load_has_ended() -> None:
    assert PROGRESS.text(10).endswith(" · 0 s left")


def test_a_quantile_that_is_not_known_yet_is_a_dash() -> None:
    assert "p99 so far -" in replace(PROGRESS, p99_ms=None).text(None)


def test_without_a_terminal_there_is_a_line_for_each_stage_and_for_each_five_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    output = io.StringIO()
    with Display(Console(file=output, width=200)) as display:
        for now in (1.0, 2.0, 3.0, 6.0, 7.0):
            display.progress(replace(PROGRESS, elapsed=now, stage="one" if now < 3 else "two"), None)

    assert [line.split(" · ")[-1] for line in output.getvalue().splitlines()] == ["1 s", "3 s"]


def test_what_the_lab_does_next_takes_the_place_of_the_progress() -> None:
    output = io.StringIO()
    with Display(Console(file=output, width=200, force_terminal=True, no_color=True)) as display:
        for step in ("first", "second"):
            display.progress(PROGRESS, None)
            display.say(step)

    line_up_and_erase = "\x1b[1A\x1b[2K"
    before_first, before_second = output.getvalue().split("first")[0], output.getvalue().split("first")[1]
    for text in (before_first, before_second.split("second")[0]):
        assert line_up_and_erase in text.split("burst-100")[-1]


def test_in_a_terminal_the_line_changes_in_place_and_is_gone_at_the_end() -> None:
    output = io.StringIO()
    with Display(Console(file=output, width=200, force_terminal=True)) as display:
        display.progress(PROGRESS, None)
        display.progress(replace(PROGRESS, stage="burst-20"), None)

    text = output.getvalue()
    assert "burst-100" in text
    assert "burst-20" in text
    assert "\n" not in text.split("burst-100")[1].split("burst-20")[0]
    assert text.rstrip().endswith("\x1b[2K")
