"""Plots as geometry: scales, ticks and paths in the units of an SVG panel. The template draws them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from timesplit.analysis.summary import Bursts, RouteSummary, Spectrum, Windows
from timesplit.report.numbers import milliseconds

WIDTH: Final = 280
HEIGHT: Final = 172
LEFT: Final = 44
RIGHT: Final = 264
TOP: Final = 10
BOTTOM: Final = 146
FLOOR_NS: Final = 1_000  # logarithms end here: no clock of ours tells less than 1 µs apart
MAX_SHARES: Final = 5  # labels like 99.99 % that have room beside one another
READINGS: Final = 60  # places along x at which a panel can be read

Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis, in units of the panel."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A line, or a closed area.

    Attributes:
        path: SVG path data.
        kind: `client`, `span`, `test` or `median` for a line, `band` for an area.
    """

    path: str
    kind: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot.

    Attributes:
        title: the route.
        detail: what else tells it from its neighbours.
        x_ticks: along the bottom.
        y_ticks: along the left, in milliseconds.
        curves: in the order in which they are drawn.
        readings: places along x, each with what the curves say there.
        shaded: where the warm-up ends; None where nothing is shaded.
    """

    title: str
    detail: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    readings: tuple[tuple[float, str], ...]
    shaded: float | None = None


def latency_by_percentile(routes: Sequence[RouteSummary]) -> list[Panel]:
    """Return response time and server span by percentile: x grows with 1 / (1 − p), y is logarithmic."""
    spectra = [(route, route.spectrum) for route in routes if route.spectrum]
    values = [
        value
        for route, spectrum in spectra
        for each in (spectrum, route.span_spectrum)
        if each
        for value in each.values_ns
    ]
    if not values:
        return []
    y, y_ticks = _logarithmic(values)
    last = max(1.0, *(_nines(spectrum.percentiles[-1]) for _, spectrum in spectra))
    x = _linear(0, last, LEFT, RIGHT)
    shown = range(0, math.floor(last) + 1, 1 if last < MAX_SHARES else 2)
    x_ticks = tuple(Tick(x(place), f"{100 - 100 * 0.1**place:.7g} %") for place in shown)
    return [
        Panel(
            title=route.route,
            detail=f"{route.stage}, n = {len_of(route):,}",
            x_ticks=x_ticks,
            y_ticks=y_ticks,
            curves=tuple(_spectrum_curves(route, x, y)),
            readings=tuple(_spectrum_readings(route, x)),
        )
        for route, _ in spectra
    ]


def latency_over_time(routes: Sequence[RouteSummary], warmup_ns: int, lasted_ns: int) -> list[Panel]:
    """Return the p99 and the median of response time over the run; y is logarithmic."""
    series = [(route, route.windows) for route in routes if route.windows]
    values = [value for _, each in series for value in (*each.p50_ns, *_upper(each)[1]) if value is not None]
    if not values:
        return []
    y, y_ticks = _logarithmic(values)
    end = max(lasted_ns, *(each.starts_ns[-1] + each.width_ns for _, each in series))
    x = _linear(0, end, LEFT, RIGHT)
    x_ticks = tuple(Tick(x(at * 1e9), f"{at:,.0f} s") for at in _steps(end / 1e9, 4))
    return [
        Panel(
            title=route.route,
            detail=f"{route.stage}, {_upper(each)[0]} of {each.width_ns / 1e9:g} s windows",
            x_ticks=x_ticks,
            y_ticks=y_ticks,
            curves=tuple(_window_curves(each, x, y)),
            readings=tuple(_window_readings(each, x)),
            shaded=x(min(warmup_ns, end)) if warmup_ns else None,
        )
        for route, each in series
    ]


def answers_of_bursts(routes: Sequence[RouteSummary]) -> list[Panel]:
    """Return response time and server span of the i-th answer of a burst; y is linear, each panel its own."""
    return [_burst_panel(route, route.bursts) for route in routes if route.bursts]


def len_of(route: RouteSummary) -> int:
    """Return how many requests a route's durations rest on."""
    return route.response.n if route.response else 0


def _burst_panel(route: RouteSummary, bursts: Bursts) -> Panel:
    top = max(bursts.response_high_ns)
    x, y = _linear(1, max(2, bursts.size), LEFT, RIGHT), _linear(0, top, BOTTOM, TOP)
    ranks = [1, *(round(at) for at in _steps(bursts.size, 5) if at > 1)]
    return Panel(
        title=route.route,
        detail=f"bursts of {bursts.size}, median of {bursts.count}",
        x_ticks=tuple(Tick(x(rank), str(rank)) for rank in ranks),
        y_ticks=tuple(Tick(y(at * 1e6), f"{at:,.10g}") for at in _steps(top / 1e6, 5)),
        curves=tuple(_burst_curves(route, bursts, x, y)),
        readings=_thinned(_burst_readings(bursts, x)),
    )


def _burst_curves(route: RouteSummary, bursts: Bursts, x: Scale, y: Scale) -> Iterator[Curve]:
    places = [x(rank) for rank in range(1, bursts.size + 1)]
    low, high = ([y(value) for value in each] for each in (bursts.response_low_ns, bursts.response_high_ns))
    yield Curve(_area(places, low, high), "band")
    if route.in_process:
        level = y(route.in_process.median_ns)
        yield Curve(_line([LEFT, RIGHT], [level, level]), "test")
    if bursts.span_ns:
        yield Curve(_line(places, [y(value) for value in bursts.span_ns]), "span")
    yield Curve(_line(places, [y(value) for value in bursts.response_ns]), "client")


def _burst_readings(bursts: Bursts, x: Scale) -> list[tuple[float, str]]:
    spans = bursts.span_ns or (None,) * bursts.size
    answers = enumerate(zip(bursts.response_ns, spans, strict=True), 1)
    return [
        (x(rank), _reading(f"answer {rank}", client=client, span=span)) for rank, (client, span) in answers
    ]


def _spectrum_curves(route: RouteSummary, x: Scale, y: Scale) -> Iterator[Curve]:
    for spectrum, kind in ((route.span_spectrum, "span"), (route.spectrum, "client")):
        if spectrum:
            places = [x(_nines(p)) for p in spectrum.percentiles]
            yield Curve(_line(places, [y(value) for value in spectrum.values_ns]), kind)


def _spectrum_readings(route: RouteSummary, x: Scale) -> Iterator[tuple[float, str]]:
    assert route.spectrum is not None  # the caller chose routes with one
    spans = _at(route.span_spectrum)
    for p, value in zip(route.spectrum.percentiles, route.spectrum.values_ns, strict=True):
        label = f"{100 * p:.7g} %"
        yield x(_nines(p)), _reading(label, client=value, span=spans.get(p))


def _at(spectrum: Spectrum | None) -> dict[float, int]:
    return dict(zip(spectrum.percentiles, spectrum.values_ns, strict=True)) if spectrum else {}


def _upper(windows: Windows) -> tuple[str, tuple[int | None, ...]]:
    """Return the p99 where most windows have one, else the maximum, and its name."""
    with_p99 = sum(value is not None for value in windows.p99_ns)
    return ("p99", windows.p99_ns) if 2 * with_p99 >= len(windows.p99_ns) else ("maximum", windows.max_ns)


def _window_curves(windows: Windows, x: Scale, y: Scale) -> Iterator[Curve]:
    for values, kind in ((windows.p50_ns, "median"), (_upper(windows)[1], "client")):
        points = [
            (start, x(start + windows.width_ns / 2), y(value))
            for start, value in zip(windows.starts_ns, values, strict=True)
            if value is not None
        ]
        # A window without requests leaves a hole, not a line across it.
        breaks = [place for place, (a, b) in enumerate(pairwise(points), 1) if b[0] - a[0] > windows.width_ns]
        pieces = [points[low:high] for low, high in pairwise([0, *breaks, len(points)])]
        yield Curve(" ".join(_line([p[1] for p in piece], [p[2] for p in piece]) for piece in pieces), kind)


def _window_readings(windows: Windows, x: Scale) -> Iterator[tuple[float, str]]:
    name, upper = _upper(windows)
    columns = zip(windows.starts_ns, windows.counts, windows.p50_ns, upper, strict=True)
    for start, count, median, high in columns:
        text = f"{start / 1e9:,.0f} s: {name} {milliseconds(high)}, median {milliseconds(median)} ms, n = {count:,}"
        yield x(start + windows.width_ns / 2), text


def _reading(place: str, *, client: int, span: int | None) -> str:
    beside = "" if span is None else f", server span {milliseconds(span)}"
    return f"{place}: client {milliseconds(client)}{beside} ms"


def _thinned(readings: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    step = math.ceil(len(readings) / READINGS)
    return tuple(readings[::step])


def _nines(p: float) -> float:
    return -math.log10(1 - p)


def _linear(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / ((high - low) or 1) * (end - start)


def _logarithmic(values: Sequence[int | None]) -> tuple[Scale, tuple[Tick, ...]]:
    """Return a scale over whole decades of milliseconds, and its ticks."""
    known = [max(value, FLOOR_NS) for value in values if value is not None]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    high = max(high, low + 1)
    place = _linear(low, high, BOTTOM, TOP)
    between = (1, 2, 5) if high - low <= 2 else (1,)
    marks = [factor * 10.0**power for power in range(low, high + 1) for factor in between]
    ticks = (Tick(place(math.log10(mark)), f"{mark / 1e6:,.10g}") for mark in marks if mark <= 10.0**high)
    return lambda value: place(math.log10(max(value, FLOOR_NS))), tuple(ticks)


def _steps(top: float, most: int) -> list[float]:
    """Return round numbers from 0 to `top`, at most so many beside 0."""
    rough = top / most or 1
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [place * step for place in range(math.floor(top / step) + 1)]


def _line(places: Sequence[float], levels: Sequence[float]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(places, levels, strict=True))


def _area(places: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    return _line([*places, *reversed(places)], [*high, *reversed(low)]) + "Z"
