"""The report's first lines in a terminal: the sentence, and what test, trace and client say of each route."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from timesplit.analysis.summary import Distribution, Figure, RouteSummary, Summary, Tail
from timesplit.report import numbers

MAX_ROUTES: Final = 40  # the report has the others
_UNBOUNDED: Final = 10_000  # columns: what a table would take if it could
WORTH_A_LINE_NS: Final = 20_000_000  # what a person can notice
_FEW: Final = "~"
_LEGEND: Final = (
    f"Milliseconds. {_FEW} too few samples to quote. n: requests that succeeded, after the warm-up."
)


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print what a run came to: a line for each route where they fit, else one for each who speaks of it.

    Args:
        summary: of the run.
        console: where to print; standard output if not given.
    """
    console = console or Console(highlight=False)
    console.print()
    console.print(_sentence(summary.headline.text))
    for note in summary.notes:
        console.print(_plain(f"Note: {note}", "yellow"))
    console.print()
    routes = summary.routes[:MAX_ROUTES]
    wide = _wide_table(routes)
    unbounded = console.options.update(max_width=_UNBOUNDED)
    fits = console.measure(wide, options=unbounded).maximum <= console.width
    console.print(wide if fits else _narrow_table(routes))
    console.print(_plain(_LEGEND, "dim"))
    for line in _closing_lines(summary):
        console.print(line)


def _wide_table(routes: Sequence[RouteSummary]) -> Table:
    with_tests = any(row.in_process for row in routes)
    tests = ("test median", "max") if with_tests else ()
    table = _table(
        "route", "n", "failed", *tests, "span p50", "p95", "max", "client p50", "p95", "p99", "max"
    )
    for stage, rows in groupby(routes, key=lambda row: row.stage):
        table.add_row(_plain(stage, "dim"))
        for row in rows:
            tested = _test_times(row) if with_tests else ()
            p50, p95, _, longest = _times(row.span, "blue")
            own = (_plain("  " + row.route), *_counts(row))
            table.add_row(*own, *tested, p50, p95, longest, *_times(row.response, "bold"))
    return table


def _narrow_table(routes: Sequence[RouteSummary]) -> Table:
    table = _table("route", "n", "p50", "p95", "p99", "max")
    for stage, rows in groupby(routes, key=lambda row: row.stage):
        table.add_row(_plain(stage, "dim"))
        for row in rows:
            requests, failed = _counts(row)
            failures = Text.assemble(", failed ", failed) if row.failed else Text()
            table.add_row(Text.assemble("  ", _plain(row.route), failures), requests)
            if row.in_process:
                median, longest = _test_times(row)
                table.add_row("    test", "", median, "", "", longest)
            table.add_row("    span", "", *_times(row.span, "blue"))
            table.add_row("    client", "", *_times(row.response, "bold"))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold", min_width=10)
    for head in others:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _counts(row: RouteSummary) -> tuple[Text, Text]:
    succeeded = row.response.n if row.response else 0
    return Text(f"{succeeded:,}"), Text(f"{row.failed:,}", "red" if row.failed else "dim")


def _test_times(row: RouteSummary) -> list[Text]:
    test = row.in_process
    return [_time(value) for value in ((test.median_ns, test.max_ns) if test else (None, None))]


def _times(times: Distribution | None, style: str) -> list[Text]:
    """Return p50, p95, p99 and the maximum; dashes where nothing is known."""
    if times is None:
        return [Text(numbers.UNKNOWN, "dim"), *(Text(numbers.NONE, "dim") for _ in range(3))]
    return [*(_figure(each, style) for each in (times.p50, times.p95, times.p99)), _time(times.max_ns, style)]


def _figure(figure: Figure, style: str) -> Text:
    return _time(figure.value_ns, style) if figure.enough else _time(figure.value_ns, "dim", _FEW)


def _time(nanoseconds: int | None, style: str = "dim", mark: str = " ") -> Text:
    return Text(numbers.milliseconds(nanoseconds) + mark, style)


def _closing_lines(summary: Summary) -> Iterator[Text]:
    if len(summary.routes) > MAX_ROUTES:
        yield _plain(f"{len(summary.routes) - MAX_ROUTES:,} more routes are in the report.", "dim")
    for row in summary.routes[:MAX_ROUTES]:
        if row.has_parts and row.tail and row.tail.excess_ns >= WORTH_A_LINE_NS:
            yield _tail_line(row, row.tail)
    for jobs in summary.jobs:
        yield _plain(
            f"Jobs, {jobs.kind}: {jobs.posted:,} posted, {jobs.finished:,} finished, {jobs.dead:,} dead letters, "
            f"{jobs.open:,} open, {jobs.lost:,} lost, {jobs.repeated:,} with more than one effect.",
            "red" if jobs.lost or jobs.repeated else "",
        )
    complete = summary.completeness
    missing = ", ".join(f"{reason} {rows:,}" for reason, rows in complete.unmatched.items())
    yield _plain(
        f"Records: {complete.client_rows:,} attempts, {complete.matched:,} with a server record"
        + (f", without one: {missing}." if missing else "."),
        "dim" if complete.is_complete else "yellow",
    )


def _tail_line(row: RouteSummary, tail: Tail) -> Text:
    own = tail.parts_ns[tail.owner]
    behind = f", most of it behind {tail.culprit}" if tail.culprit else ""
    return _plain(
        f"Tail of {row.route} ({row.stage}): {numbers.milliseconds(tail.excess_ns)} ms over the median, "
        f"{tail.owner} {numbers.milliseconds(own)} ms{behind}."
    )


def _sentence(text: str) -> Text:
    pieces = text.split("`")
    return Text.assemble(
        *(_plain(piece, "bold cyan" if odd % 2 else "bold") for odd, piece in enumerate(pieces))
    )


def _plain(text: str, style: str = "") -> Text:
    """Return text from outside: no markup is read in it, and no escape sequence reaches the terminal."""
    return Text("".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text), style)
