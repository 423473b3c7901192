"""What bursts show that single requests do not: how long until the last answer, and in which order. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from timesplit.analysis import stats
from timesplit.analysis.samples import UNKNOWN, Samples
from timesplit.analysis.summary import Bursts, Waves

WAVE_JUMP: Final = 8  # times the usual distance between answers
WAVE_STEP: Final = (0.5, 2.0)  # times the first answer's response time: a thread serves one after another
WAVE_TOLERANCE: Final = 0.1  # of a group's size, by which groups may differ


@dataclass(frozen=True, slots=True)
class BurstShape:
    """What the attempts of one route and stage say of its bursts.

    Attributes:
        size: requests in a burst.
        complete: numbers of the bursts in which every request succeeded.
        incomplete: how many other bursts there were.
        at_once: spans open at a time in one worker, mean while a burst ran; None where unknown.
    """

    size: int
    complete: tuple[int, ...]
    incomplete: int
    at_once: float | None


def split_by_burst(samples: Samples, shape: BurstShape) -> list[Samples]:
    """Return the samples of each complete burst."""
    whole = samples.only(np.isin(samples.burst, shape.complete))
    whole = whole.only(np.argsort(whole.burst, kind="stable"))
    edges = np.flatnonzero(np.diff(whole.burst)) + 1
    positions = np.split(np.arange(len(whole.burst)), edges) if len(whole.burst) else []
    return [whole.only(each) for each in positions]


def summarise_bursts(bursts: Sequence[Samples], shape: BurstShape) -> Bursts | None:
    """Return what bursts show; None where none was complete."""
    if not bursts:
        return None
    response = np.array([burst.response for burst in bursts])
    order = np.argsort(response, axis=1)
    response = np.take_along_axis(response, order, axis=1)
    span = np.take_along_axis(np.array([burst.span for burst in bursts]), order, axis=1)
    wall = stats.distribution_of_independent(response[:, -1])
    assert wall is not None  # there is a burst
    by_rank = _medians(response)
    return Bursts(
        count=len(bursts),
        incomplete=shape.incomplete,
        size=shape.size,
        wall=wall,
        response_ns=by_rank,
        response_low_ns=tuple(map(int, response.min(axis=0))),
        response_high_ns=tuple(map(int, response.max(axis=0))),
        span_ns=_medians(span) if np.all(span != UNKNOWN) else None,
        at_once=shape.at_once,
        waves=find_waves(by_rank),
    )


def find_waves(by_rank: Sequence[int]) -> Waves | None:
    """Return the groups of equal size in which answers came, or None.

    A group ends where the next answer comes much later than answers usually follow one another, as they do when
    a fixed number of threads serves a burst. Answers that come one by one have no such place.

    Args:
        by_rank: response time of the i-th answer, ascending.
    """
    steps = np.diff(np.asarray(by_rank, np.int64))
    if len(steps) == 0:
        return None
    ends = np.flatnonzero(steps > round(max(WAVE_JUMP * float(np.median(steps)), by_rank[0] / 4))) + 1
    if len(ends) == 0:
        return None
    sizes = np.diff([0, *ends, len(by_rank)])
    size, rest = round(float(np.mean(sizes[:-1]))), sizes[-1]
    off = WAVE_TOLERANCE * size
    if size < 2 or np.any(np.abs(sizes[:-1] - size) > off) or rest > size + off:
        return None
    levels = [float(np.median(group)) for group in np.split(np.asarray(by_rank), ends)]
    step = (levels[-1] - levels[0]) / len(ends)
    least, most = (factor * by_rank[0] for factor in WAVE_STEP)
    return Waves(size=size, step_ns=round(step)) if least <= step <= most else None


def _medians(values: npt.NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(round(value) for value in np.median(values, axis=0))
