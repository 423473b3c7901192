"""Counts a worker's server spans by their numbers: which run they belong to, and how many never came."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Count:
    """Server spans of a worker in a run.

    Attributes:
        written: made by the worker, as far as their numbers tell; None if it does not number them.
        forwarded: of these, arrived.
        dropped: of these, lost; None if the worker does not number them.
    """

    written: int | None
    forwarded: int
    dropped: int | None


@dataclass(slots=True)
class _Run:
    forwarded: int = 0
    first: int | None = None  # lowest number


class Numbering:
    """The numbers of one worker's server spans.

    A lost span tells no run. It is counted for the run to which the numbers before it belong; those that are
    lost before the first run's first span, for that run. So each is counted once.
    """

    def __init__(self, *, from_start: bool) -> None:
        """Start with no number seen.

        Args:
            from_start: whether the worker began within our time, so that number 0 should have come to us.
        """
        self._from_start = from_start
        # Numbers seen, as runs of neighbours [first, last]: one as long as nothing is lost.
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._runs: dict[bytes, _Run] = {}
        self.made: int | None = None

    def note(self, seq: int | None, key: bytes | None) -> None:
        """Take the number of a span that has arrived, and the key of its run if it has one."""
        if key is not None:
            run = self._runs.setdefault(key, _Run())
            run.forwarded += 1
            if seq is not None and (run.first is None or seq < run.first):
                run.first = seq
        if seq is not None:
            self._see(seq)

    def count(self, key: bytes) -> Count:
        """Count the spans of a run."""
        run = self._runs.get(key, _Run())
        if run.first is None:
            return Count(None, run.forwarded, None)
        dropped = sum(last - first + 1 for first, last in self._gaps() if self._run_of(first) == key)
        return Count(run.forwarded + dropped, run.forwarded, dropped)

    def _see(self, seq: int) -> None:
        at = bisect_right(self._firsts, seq)
        if at and seq <= self._lasts[at - 1]:
            return
        after = at < len(self._firsts) and self._firsts[at] == seq + 1
        if at and self._lasts[at - 1] == seq - 1:
            self._lasts[at - 1] = self._lasts.pop(at) if after else seq
            if after:
                self._firsts.pop(at)
        elif after:
            self._firsts[at] = seq
        else:
            self._firsts.insert(at, seq)
            self._lasts.insert(at, seq)

    def _gaps(self) -> Iterator[tuple[int, int]]:
        expected = 0 if self._from_start else self._firsts[0]
        for first, last in zip(self._firsts, self._lasts, strict=True):
            if first > expected:
                yield expected, first - 1
            expected = last + 1
        if self.made is not None and self.made > expected:
            yield expected, self.made - 1

    def _run_of(self, seq: int) -> bytes:
        begun = [(run.first, key) for key, run in self._runs.items() if run.first is not None]
        before = [one for one in begun if one[0] <= seq]
        return max(before)[1] if before else min(begun)[1]
