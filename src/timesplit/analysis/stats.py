"""Quantiles of what was measured, and how far to trust them. Numbers in, numbers out.

A quantile is an order statistic: the smallest measured value that at least the share `p` of all values does
not exceed (the inverse of the empirical distribution). Nothing is interpolated, binned or rounded.

Response times of a queue depend on one another, so an interval made from single requests is far too narrow:
for M/M/1 at 80 % load its "95 %" hold the true p99 one time in five. Intervals here rest on *sectioning*: time
is cut into equal blocks, the quantile of each block is one observation, and Student's t does the rest
(Asmussen and Glynn, Stochastic Simulation, 2007, III.5). Where a run consists of bursts, the burst is the block.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import stats as distributions

from timesplit.analysis.summary import Distribution, Figure, Interval, Unit

Nanoseconds = npt.NDArray[np.int64]

# Below these all values lie below the quantile with more than 2.5 %, the upper side of a 95 % interval: p^n > 0.025.
ENOUGH_SAMPLES: Final = {0.5: 6, 0.95: 72, 0.99: 368}
CONFIDENCE: Final = 0.95
BLOCK_COUNTS: Final = (30, 25, 20)  # tried in turn: fewer blocks are longer ones
MIN_BEYOND: Final = 10  # requests beyond the quantile in each block: 1,000 requests for a p99
MIN_BEYOND_IN_BURST: Final = 1  # a burst's p99 needs 100 requests
MIN_BURSTS: Final = 6  # the fewest with a 95 % interval for their median
MAX_LAG_1: Final = 0.2  # correlation of neighbouring blocks above which they are too short


def quantile(ordered: Nanoseconds, p: float) -> int:
    """Return the quantile of values that are in ascending order.

    Args:
        ordered: at least one value, ascending.
        p: between 0 and 1.
    """
    # Rounded, since 0.95 * 20 must not become 19.000000000000004 and then 20.
    rank = math.ceil(round(p * len(ordered), 6))
    return int(ordered[max(rank, 1) - 1])


def distribution(times: Nanoseconds, values: Nanoseconds) -> Distribution | None:
    """Describe values measured one after another, with intervals over blocks of time.

    Args:
        times: when each was due, ascending.
        values: what was measured.

    Returns:
        None where there are no values.
    """
    return _describe(values, lambda p: interval_over_time(times, values, p))


def distribution_of_bursts(bursts: Sequence[Nanoseconds]) -> Distribution | None:
    """Describe the values of all bursts together, with intervals over bursts."""
    values = np.concatenate(bursts) if bursts else np.empty(0, np.int64)
    return _describe(values, lambda p: interval_over_bursts(bursts, p))


def distribution_of_independent(values: Nanoseconds) -> Distribution | None:
    """Describe values that do not depend on one another, such as one for each burst.

    The median has its order-statistic interval; p95 and p99 have none, since it would take hundreds of values.
    """
    return _describe(values, lambda p: interval_of_median(values) if p == 0.5 else None)


def interval_over_time(times: Nanoseconds, values: Nanoseconds, p: float) -> Interval | None:
    """Return the sectioning interval of a quantile over blocks of equal time.

    `q ± t(b-1) * sqrt(Σ(q_i - q)² / (b-1)) / sqrt(b)` with q from all values and q_i from each of b blocks.

    Args:
        times: when each was due, ascending.
        values: what was measured.
        p: between 0 and 1.

    Returns:
        None where no number of blocks has enough values in each block and neighbours that do not correlate.
    """
    needed = MIN_BEYOND / min(p, 1 - p)
    if len(values) < needed * BLOCK_COUNTS[-1]:
        return None
    for count in BLOCK_COUNTS:
        edges = np.linspace(times[0], times[-1], count + 1)[1:-1]
        blocks = np.split(values, np.searchsorted(times, edges))
        if min(map(len, blocks)) >= needed:
            observed = _quantiles(blocks, p)
            if lag_1(observed) < MAX_LAG_1:
                return _section(observed, np.sort(values), p, "blocks")
    return None


def interval_over_bursts(bursts: Sequence[Nanoseconds], p: float) -> Interval | None:
    """Return the sectioning interval of a quantile where each burst is a block.

    Returns:
        None where there are fewer than six bursts, or a burst is too small to hold the quantile.
    """
    if len(bursts) < MIN_BURSTS or min(map(len, bursts)) * min(p, 1 - p) < MIN_BEYOND_IN_BURST - 1e-9:
        return None
    return _section(_quantiles(bursts, p), np.sort(np.concatenate(bursts)), p, "bursts")


def interval_of_median(values: Nanoseconds) -> Interval | None:
    """Return the order-statistic interval of the median of independent values; None below six of them."""
    n = len(values)
    if n < MIN_BURSTS:
        return None
    # The k-th smallest and largest enclose the median unless fewer than k values fall on one side of it.
    below = int(distributions.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5))
    ordered = np.sort(values)
    return Interval(low_ns=int(ordered[below - 1]), high_ns=int(ordered[n - below]), blocks=n, unit="bursts")


def lag_1(observed: npt.NDArray[np.float64]) -> float:
    """Return the correlation of neighbours in a series; 0 for a constant one."""
    deviations = observed - observed.mean()
    total = float(deviations @ deviations)
    return float(deviations[1:] @ deviations[:-1]) / total if total else 0.0


def _quantiles(blocks: Sequence[Nanoseconds], p: float) -> npt.NDArray[np.float64]:
    return np.array([quantile(np.sort(block), p) for block in blocks], np.float64)


def _section(observed: npt.NDArray[np.float64], ordered: Nanoseconds, p: float, unit: Unit) -> Interval:
    count, overall = len(observed), quantile(ordered, p)
    spread = math.sqrt(float(np.sum((observed - overall) ** 2)) / (count - 1) / count)
    half = float(distributions.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread
    low = max(round(overall - half), int(ordered[0]))  # symmetric by construction, but no time is negative
    return Interval(low_ns=low, high_ns=round(overall + half), blocks=count, unit=unit)


def _describe(values: Nanoseconds, interval: Callable[[float], Interval | None]) -> Distribution | None:
    if len(values) == 0:
        return None
    ordered = np.sort(values)
    figures = {
        p: Figure(value_ns=quantile(ordered, p), enough=len(values) >= needed, interval=interval(p))
        for p, needed in ENOUGH_SAMPLES.items()
    }
    return Distribution(
        n=len(values), p50=figures[0.5], p95=figures[0.95], p99=figures[0.99], max_ns=int(ordered[-1])
    )
