import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.synthetic_run import MS, SECOND, SyntheticRun, burst_run, jobs_run, mixed_run
from timesplit.analysis.summarise import summarise
from timesplit.report.html import render_html

HOSTILE = "GET /<script>alert('x')</script>/\"><img src=x onerror=alert(1)>/`code`/{{7*7}}"
VOID = {"meta", "link", "br", "img", "line", "path"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains of tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self._cell: list[str] | None = None
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._cell = self.rows[-1]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self.text += data
        if self._cell is not None:
            self._cell[-1] += data

    def row(self, name: str) -> list[str]:
        """The first row of a table that begins with a name, its cells without the spaces that align them."""
        return [" ".join(cell.split()) for cell in next(row for row in self.rows if row and name in row[0])]


@pytest.fixture(scope="module")
def bursts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of ten bursts of 20 and 100 on the four waiting routes."""
    return render_html(summarise(burst_run(tmp_path_factory.mktemp("bursts"))))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a mix with failures and lost spans."""
    return render_html(summarise(mixed_run(tmp_path_factory.mktemp("mixed"), seconds=15)))


def hostile_run(root: Path) -> SyntheticRun:
    run = SyntheticRun(
        root,
        title=HOSTILE,
        question=HOSTILE,
        host="http://<b>x</b>/",
        command=["timesplit", HOSTILE],
        versions={HOSTILE: HOSTILE},
        service={"workers": HOSTILE},
        faults=[{"process": HOSTILE}],
        stages=[HOSTILE],
    )
    for at in range(3):
        row = run.attempt(HOSTILE, at * SECOND, 10 * MS, stage=HOSTILE)
        run.served(row, at * SECOND + MS, at * SECOND + 5 * MS, http_route=HOSTILE)
    run.attempt(HOSTILE, 5 * SECOND, 10 * MS, stage=HOSTILE, error=f"failed: {HOSTILE}")
    run.add("jobs", job_id=HOSTILE, kind=HOSTILE, stage=HOSTILE, posted=1, state=HOSTILE)
    ids = {"trace_id": bytes(16), "span_id": bytes(8)}
    told = {"name": HOSTILE, "stage": HOSTILE, "kind": HOSTILE, "side": HOSTILE, "messages": 1, "opened": 1}
    run.add("streams", **ids, **told, error=HOSTILE)
    run.process("x", HOSTILE, service=HOSTILE, host=HOSTILE, versions=f'{{"a": "{HOSTILE[:20]}"', written=4)
    return run


def test_text_from_outside_is_text(tmp_path: Path) -> None:
    html = render_html(summarise(hostile_run(tmp_path).write_with_processes()))
    page = Page(html)
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "alert('x')" in page.text
    assert "{{7*7}}" in page.text


def test_text_that_is_no_unicode_does_not_break_the_page(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, title="\ud800 half a character")
    run.attempt("GET /\x00\x1b[31m\u202e", 0, 10 * MS)
    assert "half a character" in render_html(summarise(run.write()))


def test_the_page_asks_the_network_for_nothing(mixed: str, bursts: str) -> None:
    for html in (mixed, bursts):
        page = Page(html)
        asked = [
            value
            for _, attributes in page.tags
            for name, value in attributes.items()
            if name in ("src", "href", "srcset", "action", "data")
        ]
        assert asked == ["data:,"]
        assert "url(" not in html
        assert "@import" not in html
        policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy
        assert policy.startswith("default-src 'none'")


def test_its_own_script_is_the_only_one_that_may_run(mixed: str) -> None:
    script = re.search(r"<script>(.*?)</script>", mixed, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in mixed


def test_the_first_lines_are_the_sentence_and_the_three_columns(bursts: str) -> None:
    page = Page(bursts)
    first = page.text[: page.text.index("Every route")]
    assert first.index("the last waits 5.1 s") < first.index("In process, in the trace, at the client")
    row = page.row("GET /blocking-in-async")
    # route, n, in process: median max, span: p50 p95 max, client: p50 p95 p99 max
    assert row[:11] == ["GET /blocking-in-async", "200", *row[2:7], "511", "971", "1,021", "1,022"]
    assert all(50 < float(cell) < 53 for cell in row[2:7])


def test_bursts_show_their_wall_time_its_interval_and_how_answers_came(bursts: str) -> None:
    page = Page(bursts)
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows if len(row) == 10]
    by_route = {(row[0], row[2]): row for row in rows}
    blocked, threads = (by_route[f"GET /{name}", "100"] for name in ("blocking-in-async", "sync-blocking"))
    assert blocked[9] == "one after another"
    assert blocked[4] == "5,103 5,103–5,103"
    assert blocked[5] == "5,103 too few samples"
    assert threads[9].startswith("waves of 40, 51.")
    assert page.text.count("bursts of 100, median of 10") == 4


def test_every_route_has_its_requests_failures_gap_and_parts(mixed: str) -> None:
    page = Page(mixed)
    row = next(row for row in page.rows if len(row) == 14 and "n-plus-one" in row[0])
    assert "21 statements" in row[11]
    assert (
        len([row for row in page.rows if len(row) == 14 and row[0].strip().startswith(("GET", "POST"))]) == 8
    )
    assert "warm-up, are cut off" in page.text
    assert "Closed model" in page.text


def test_what_nobody_recorded_is_unknown_and_not_zero(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    for at in range(3):
        row = run.attempt("GET /traced", at * SECOND, 10 * MS)
        run.served(row, at * SECOND + MS, at * SECOND + 5 * MS, query_ns=0)
        run.attempt("GET /untraced", at * SECOND, 10 * MS)
    page = Page(render_html(summarise(run.write_with_processes())))
    traced, untraced = (
        next(row for row in page.rows if len(row) > 10 and name in row[0] and row[-1].strip() == "unknown")
        for name in ("GET /traced", "GET /untraced")
    )
    assert [cell.strip("\u2007\u2008 ") for cell in traced[-3:]] == ["0", "unknown", "unknown"]
    assert [cell.strip() for cell in untraced[-5:]] == ["unknown"] * 5


def test_the_completeness_box_accounts_for_every_row(mixed: str) -> None:
    text = " ".join(Page(mixed).text.split())
    assert "attempts begun" in text
    assert "it was answered, and its server record was made but never arrived" in text


def test_jobs_streams_and_a_cut_have_their_place(tmp_path: Path) -> None:
    text = Page(render_html(summarise(jobs_run(tmp_path)))).text
    assert "dead letters" in text
    assert "37 of 200 background tasks" in text
    run = SyntheticRun(tmp_path, scenario="cut")
    run.attempt("GET /a", 0, 10 * MS)
    assert "This run was cut short" in Page(render_html(summarise(run.write(lasted=None)))).text


def test_many_routes_are_all_in_the_tables_and_the_slowest_are_drawn(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    for number in range(40):
        run.attempt(f"GET /r{number:02}", number * MS, number * MS + MS)
    page = Page(render_html(summarise(run.write())))
    assert {f"GET /r{number:02}" for number in range(40)} <= {row[0].strip() for row in page.rows if row}
    titles = [a["title"] for tag, a in page.tags if tag == "code" and "title" in a]
    assert titles[:12] == [f"GET /r{number}" for number in range(39, 27, -1)]
    assert "The 12 slowest of 40 routes" in page.text
