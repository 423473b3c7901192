"""The report as one HTML file: opens offline, asks the network for nothing, and is readable without scripts."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from timesplit.analysis.headline import ONE_AT_A_TIME, spoken
from timesplit.analysis.stats import ENOUGH_SAMPLES
from timesplit.analysis.summary import Bursts, Completeness, RouteSummary, Spectrum, Summary
from timesplit.parts import PARTS
from timesplit.report import numbers, plots
from timesplit.schema import ERRORS, REASONS

MAX_PANELS: Final = 12  # plots of one kind; of more routes, those of the slowest
NAMED_PARTS: Final = 4  # beside a bar; the table below has all
SHOWN_PARTS: Final = ("query", "cache", "upstream")
DETAIL_PERCENTILES: Final = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


def render_html(summary: Summary) -> str:
    """Return the report as an HTML document."""
    slowest = sorted(summary.routes, key=lambda row: max(bars(row).values(), default=0), reverse=True)
    drawn = [row for row in summary.routes if row in slowest[:MAX_PANELS]]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            run=summary.run,
            stages=[
                (stage, list(rows)) for stage, rows in groupby(summary.routes, key=lambda row: row.stage)
            ],
            longest=max((value for row in summary.routes for value in bars(row).values()), default=1),
            has_tests=any(row.in_process for row in summary.routes),
            has_bursts=any(row.bursts for row in summary.routes),
            has_parts=any(row.has_parts for row in summary.routes),
            shown_in_bands=[part for part in PARTS if _is_seen(part.name, summary)],
            burst_panels=plots.answers_of_bursts(drawn),
            percentile_panels=plots.latency_by_percentile(drawn),
            time_panels=plots.latency_over_time(drawn, summary.run.warmup_ns, summary.run.lasted_ns),
            drawn=drawn,
            script_hash=base64.b64encode(hashlib.sha256(_asset("hover.js").encode()).digest()).decode(),
        )
    )


def bars(row: RouteSummary) -> dict[str, int]:
    """Return what the bars of a route show: the worst that test, span and client say.

    That is the p99, or the maximum where requests are too few for one, and of bursts.
    """
    times = {"span": row.span, "client": row.response}
    values = {
        kind: each.p99.value_ns if each.p99.enough and not row.bursts else each.max_ns
        for kind, each in times.items()
        if each
    }
    return ({"test": row.in_process.max_ns} if row.in_process else {}) | values


def order_of_answers(bursts: Bursts) -> str:
    """Return in a few words how the answers of a burst came."""
    if bursts.at_once is not None and bursts.at_once < ONE_AT_A_TIME:
        return "one after another"
    if bursts.waves:
        return f"waves of {bursts.waves.size}, {numbers.milliseconds(bursts.waves.step_ns)} ms apart"
    return "together" if bursts.response_ns[-1] < 2 * bursts.response_ns[0] else "spread out"


def total_rate(rows: Sequence[RouteSummary]) -> float | None:
    """Return the answers per second of all routes of a stage; None where none is known."""
    rates = [row.rate for row in rows if row.rate is not None]
    return sum(rates) if rates else None


def largest_parts(parts_ns: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the parts that make up most of a sum, the largest first."""
    by_size = sorted(parts_ns.items(), key=lambda item: -item[1])
    return [(name, time) for name, time in by_size[:NAMED_PARTS] if time > 0]


def _is_seen(part: str, summary: Summary) -> bool:
    return any(band.parts_ns.get(part) for row in summary.routes if row.has_parts for band in row.bands)


def verdict(completeness: Completeness) -> str:
    """Return in a sentence whether the records account for everything."""
    if completeness.is_complete:
        return "Every attempt is recorded, and every server record that is missing was counted as lost."
    return "Not everything is accounted for; see the notes at the top."


def coded(sentence: str) -> Markup:
    """Return a sentence with what is between backticks as code; everything in it is escaped."""
    pieces = [str(escape(piece)) for piece in sentence.split("`")]
    return Markup("".join(f"<code>{piece}</code>" if odd % 2 else piece for odd, piece in enumerate(pieces)))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("timesplit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ms=numbers.aligned, plain_ms=numbers.milliseconds, spoken=spoken, rate=numbers.rate, coded=coded
    )
    environment.globals.update(
        asset=lambda name: Markup(_asset(name)),  # ours, not from outside
        bars=bars,
        order_of_answers=order_of_answers,
        total_rate=total_rate,
        verdict=verdict,
        count=numbers.count,
        qualification=numbers.qualification,
        unknown=numbers.UNKNOWN,
        none=numbers.NONE,
        none_value=None,
        all_parts=PARTS,
        largest_parts=largest_parts,
        reasons=REASONS,
        errors=ERRORS,
        enough=ENOUGH_SAMPLES,
        shown_parts=SHOWN_PARTS,
        detail_percentiles=DETAIL_PERCENTILES,
        at_percentile=_at_percentile,
        plot=plots,
    )
    return environment


def _at_percentile(spectrum: Spectrum, p: float) -> int | None:
    """Return the value at a percentile, None beyond the end of the data."""
    pairs = zip(spectrum.percentiles, spectrum.values_ns, strict=True)
    return next((value for place, value in pairs if place >= p - 1e-6), None)


def _asset(name: str) -> str:
    return (files("timesplit.report") / "templates" / name).read_text("utf-8")
