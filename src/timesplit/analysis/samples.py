"""Durations of one route and stage as arrays, and the curves that plots are drawn from. Pure."""

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from timesplit.analysis.stats import Nanoseconds, quantile
from timesplit.analysis.summary import PartTime, Spectrum, Windows

SECOND_NS: Final = 1_000_000_000
UNKNOWN: Final = -1  # stands for NULL in arrays of what cannot be negative
POINTS_PER_DECADE: Final = 12  # of 1 / (1 - percentile)
MAX_WINDOWS: Final = 120
WINDOW_SECONDS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
WINDOW_P99: Final = 100  # requests in a window below which its p99 would be its maximum


@dataclass(frozen=True, slots=True)
class Samples:
    """Attempts of one route and stage that succeeded, warm-up included, in the order in which they were due.

    Attributes:
        at: when each was due, since the run began.
        response: response time.
        span: duration of the server span, UNKNOWN where there is none.
        burst: number of the burst, UNKNOWN where there is none.
        warm: whether it was due after the warm-up.
    """

    at: Nanoseconds
    response: Nanoseconds
    span: Nanoseconds
    burst: Nanoseconds
    warm: npt.NDArray[np.bool_]

    def only(self, chosen: npt.NDArray[Any]) -> "Samples":
        """Return some of them, chosen by a mask or by positions."""
        return Samples(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def spectrum(values: Nanoseconds) -> Spectrum | None:
    """Return durations by percentile, evenly spaced in 1 / (1 - percentile); None where there are none."""
    if len(values) == 0:
        return None
    ordered = np.sort(values)
    points = int(np.log10(len(ordered)) * POINTS_PER_DECADE) + 1
    percentiles = [float(1 - 10 ** (-point / POINTS_PER_DECADE)) for point in range(points)]
    return Spectrum(
        percentiles=tuple(round(p, 9) for p in percentiles),
        values_ns=tuple(quantile(ordered, p) for p in percentiles),
    )


def windows(samples: Samples) -> Windows | None:
    """Return response times in windows, long enough for a p99 where the run allows; None without samples."""
    if len(samples.at) == 0:
        return None
    width = _window_width(samples.at)
    number = samples.at // width
    starts, first = np.unique(number, return_index=True)
    pieces = [np.sort(piece) for piece in np.split(samples.response, first[1:])]
    return Windows(
        width_ns=width,
        starts_ns=tuple(int(start) * width for start in starts),
        counts=tuple(map(len, pieces)),
        p50_ns=tuple(quantile(piece, 0.5) for piece in pieces),
        p99_ns=tuple(quantile(piece, 0.99) if len(piece) >= WINDOW_P99 else None for piece in pieces),
        max_ns=tuple(int(piece[-1]) for piece in pieces),
    )


def part_time(values: Nanoseconds) -> PartTime:
    """Describe the time that requests spent in a part.

    Args:
        values: at least one.
    """
    ordered = np.sort(values)
    return PartTime(
        n=len(ordered),
        mean_ns=round(float(ordered.mean())),
        p50_ns=quantile(ordered, 0.5),
        p95_ns=quantile(ordered, 0.95),
        p99_ns=quantile(ordered, 0.99),
        max_ns=int(ordered[-1]),
    )


def _window_width(at: Nanoseconds) -> int:
    """Return the shortest width whose windows are not too many and mostly hold enough requests for a p99.

    Where requests are too few for that, the shortest that gives not too many windows.
    """
    lasted = int(at[-1] - at[0]) + 1
    widths = [seconds * SECOND_NS for seconds in WINDOW_SECONDS]
    allowed = [width for width in widths if lasted <= MAX_WINDOWS * width] or [lasted // MAX_WINDOWS + 1]
    filled = (width for width in allowed if len(at) * width >= WINDOW_P99 * 1.5 * lasted)
    width = next(filled, allowed[0])
    return width if lasted >= 6 * width else allowed[0]
