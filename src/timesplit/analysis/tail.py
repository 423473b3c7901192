"""Who owns the tail: response times split by part, in bands of percentiles, exactly.

Pure, on arrays. Means are conditional on the response time (never percentiles of parts: those do not add up), so that
what holds of each request holds of every band: the parts sum to the whole.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from timesplit.analysis.stats import Nanoseconds, quantile
from timesplit.analysis.summary import Band, Tail

BANDS: Final = ((0.0, 0.5), (0.5, 0.9), (0.9, 0.99), (0.99, 0.999), (0.999, 1.0))
TAIL: Final = 0.99
ORDINARY: Final = (0.45, 0.55)
ENOUGH: Final = 100  # requests from which on there is one at or above p99

Parts = dict[str, Nanoseconds]  # by part: the time of each request, in one order


def complete(response: Nanoseconds, known: Parts) -> Parts:
    """Return the parts of each request with what they leave untold added to `unattributed`.

    Args:
        response: response time of each request.
        known: its parts, 0 where unknown.
    """
    told = np.sum(list(known.values()), axis=0, dtype=np.int64) if known else np.zeros_like(response)
    rest = response - told
    return known | {"unattributed": known.get("unattributed", np.zeros_like(response)) + rest}


def bands(response: Nanoseconds, parts: Parts) -> tuple[Band, ...]:
    """Split requests by percentile of their response time; bands without requests are left out.

    Args:
        response: response time of each request.
        parts: as `complete` gives them.
    """
    order = np.argsort(response, kind="stable")
    edges = [round(low * len(order)) for low, _ in BANDS] + [len(order)]
    found = []
    for (low, high), first, last in zip(BANDS, edges[:-1], edges[1:], strict=True):
        if last > first:
            chosen = order[first:last]
            means = _means(parts, chosen)
            found.append(Band(low, high, last - first, sum(means.values()), means))
    return tuple(found)


def tail(
    response: Nanoseconds, parts: Parts, culprits: npt.NDArray[np.object_], costs: Nanoseconds
) -> Tail | None:
    """Say what the slowest requests spend more than ordinary ones; None where there are too few.

    Args:
        response: response time of each request.
        parts: as `complete` gives them.
        culprits: `file:line function` of each request's culprit, or None.
        costs: what it cost, 0 where there is none.
    """
    if len(response) < ENOUGH:
        return None
    ordered = np.sort(response)
    slow = np.flatnonzero(response >= quantile(ordered, TAIL))
    low, high = (quantile(ordered, p) for p in ORDINARY)
    ordinary = np.flatnonzero((response >= low) & (response <= high))
    slow_means, ordinary_means = _means(parts, slow), _means(parts, ordinary)
    excess = {name: slow_means[name] - ordinary_means[name] for name in parts}
    by_size = dict(sorted(excess.items(), key=lambda item: -item[1]))
    culprit, cost = _dearest(culprits[slow], costs[slow])
    return Tail(
        n=len(slow),
        ordinary_n=len(ordinary),
        excess_ns=sum(excess.values()),
        parts_ns=by_size,
        owner=next(iter(by_size)),
        culprit=culprit,
        culprit_ns=round(cost / len(slow)),
    )


def _means(parts: Parts, chosen: npt.NDArray[np.intp]) -> dict[str, int]:
    """Return the mean of each part, rounded; the sum of the parts is what the whole is said to be."""
    return {name: round(float(values[chosen].mean())) for name, values in parts.items()}


def _dearest(culprits: npt.NDArray[np.object_], costs: Nanoseconds) -> tuple[str | None, int]:
    sums: dict[str, int] = {}
    for culprit, cost in zip(culprits.tolist(), costs.tolist(), strict=True):
        if culprit:
            sums[culprit] = sums.get(culprit, 0) + cost
    if not sums:
        return None, 0
    worst = max(sums, key=lambda name: sums[name])
    return worst, sums[worst]
