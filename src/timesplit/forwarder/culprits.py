"""Who ran while a request waited for its loop: long steps, charged to their victims by overlap.

Pure. A step that ran while another request could have run, or while its bytes lay unread, made it wait; what it cost
is the overlap. Steps of one place in the code are added up, and the place that cost a request most is its culprit.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from timesplit.forwarder.journal import Records
from timesplit.parts import CODES

VICTIMS: Final = [CODES[name] for name in ("loop", "read", "accept")]
WORTH_NAMING: Final = 1_000_000  # ns; shorter waits are the crowd's
STEPS_KEPT: Final = 65_536  # the latest of a worker: more than a minute of nothing but steps of 1 ms
PAIRS: Final = 4_000_000  # victims × steps looked at in one batch; beyond, the latest steps count

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Charges:
    """What steps cost requests; one entry for each request.

    Attributes:
        names: `file:line function` of the place that cost it most, or None.
        costs: nanoseconds that this place cost it; -1 for none.
        numbers: the request whose step cost it most; 0 for none.
    """

    names: list[str | None]
    costs: Numbers
    numbers: Numbers

    @classmethod
    def none(cls, count: int) -> "Charges":
        """Return what nothing cost."""
        return cls([None] * count, np.full(count, -1, np.int64), np.zeros(count, np.int64))


class Steps:
    """A worker's latest long steps, in the order in which they ended."""

    def __init__(self) -> None:
        self._steps: Records | None = None

    def add(self, steps: Records) -> None:
        """Take further ones; the oldest are forgotten."""
        if len(steps):
            every = steps if self._steps is None else np.concatenate([self._steps, steps])
            self._steps = every[np.argsort(every["ended"], kind="stable")][-STEPS_KEPT:]

    def charge(self, requests: Records, texts: dict[int, str]) -> Charges:
        """Name each request's culprit.

        Args:
            requests: with their segments.
            texts: by number.
        """
        charges = Charges.none(len(requests))
        if self._steps is None or not len(requests):
            return charges
        places, which = _places(self._steps)
        victim, step, cost = self._overlaps(requests)
        for request, where, spent in _worst(victim, which[step], cost, len(places)):
            charges.names[request] = describe(places[where], texts)
            charges.costs[request] = spent
        longest = np.argsort(cost, kind="stable")  # the last one written is the longest
        charges.numbers[victim[longest]] = self._steps["number"][step[longest]]
        return charges

    def _overlaps(self, requests: Records) -> tuple[Numbers, Numbers, Numbers]:
        """Return (request, step, ns) of each pair of a wait and a step that overlap."""
        steps = self._steps
        assert steps is not None  # charge() has looked
        request, start, end = _waits(requests)
        first = np.searchsorted(steps["ended"], start, "right")
        # Steps of one loop do not overlap, so their beginnings are in order too, but for eager tasks' inner ones.
        last = np.searchsorted(np.maximum.accumulate(steps["started"]), end, "left")
        count = np.maximum(last - first, 0)
        while count.sum() > PAIRS:
            count = count // 2
        pair = np.repeat(np.arange(len(count)), count)
        step = (
            np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(last - count, count)
        )
        cost = np.minimum(end[pair], steps["ended"][step]) - np.maximum(start[pair], steps["started"][step])
        foreign = steps["number"][step] != requests["number"][request[pair]]
        counts = (cost > 0) & foreign
        return request[pair][counts], step[counts], cost[counts]


def describe(place: tuple[int, int, int, int], texts: dict[int, str]) -> str:
    """Return `file:line function`, or the owner where the code is not known (a GC pause)."""
    owner, file, line, function = place
    return (
        f"{texts[file]}:{line} {texts.get(function, '')}".strip() if texts.get(file) else texts.get(owner, "")
    )


def _places(steps: Records) -> tuple[list[tuple[int, int, int, int]], Numbers]:
    """Return the distinct places of steps, and for each step which it is."""
    columns = np.stack(
        [steps["owner"] * (steps["file"] == 0), steps["file"], steps["line"], steps["function"]], axis=1
    )
    distinct, which = np.unique(columns, axis=0, return_inverse=True)
    places: Any = [tuple(row) for row in distinct.tolist()]
    return places, which.reshape(-1)


def _waits(requests: Records) -> tuple[Numbers, Numbers, Numbers]:
    """Return (index of the request, start, end) of each wait for the loop that is worth naming."""
    segments = requests["segment"]
    shown = np.arange(segments.shape[1]) < requests["segments"][:, None]
    long = segments["end"] - segments["start"] >= WORTH_NAMING
    row, column = np.nonzero(shown & long & np.isin(segments["part"], VICTIMS))
    found = segments[row, column]
    return row, found["start"], found["end"]


def _worst(victim: Numbers, place: Numbers, cost: Numbers, places: int) -> list[tuple[int, int, int]]:
    """Add costs up by victim and place; return each victim's dearest place as (victim, place, cost)."""
    if not len(victim):
        return []
    pairs, index = np.unique(victim * places + place, return_inverse=True)
    sums = np.bincount(index, weights=cost).astype(np.int64)
    order = np.lexsort((sums, pairs // places))
    last = np.append(np.diff(pairs[order] // places) > 0, True)
    best = order[last]
    return list(
        zip(
            (pairs[best] // places).tolist(),
            (pairs[best] % places).tolist(),
            sums[best].tolist(),
            strict=True,
        )
    )
