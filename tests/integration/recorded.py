"""Run a coroutine as a request on a real loop, with the hooks that a test arms, and read its account."""

import asyncio
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Coroutine
from dataclasses import dataclass, field
from typing import Any

import uvloop

from timesplit.instrumentation.ledger import Segment, Strand, split
from timesplit.instrumentation.loop import LoopHooks, clock, drive, drives
from timesplit.parts import CODES

NAMES = {code: name for name, code in CODES.items()}
MS = 1_000_000
JIFFY = 4.5  # ms; the kernel's resolution, and what lies between a stamp and the system call after it
Work = Callable[[], Coroutine[Any, Any, Any]]
Run = Callable[[Coroutine[Any, Any, Any]], Any]
LOOPS = {"asyncio": asyncio.run, "uvloop": uvloop.run}


class Counts:
    """Stands in for the journal."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.instance = "00f067aa0ba902b7"

    def failed(self) -> None:
        self.errors.append(traceback.format_exc())


@dataclass(eq=False)
class Recorded:
    """A request, as the hooks see one, and its account once it is over."""

    traceparent: bytes = b""
    foreign: Any = None
    query_count: int = 0
    upstream_count: int = 0
    uncertain: int = 0
    number: int = 1
    journal: Counts = field(default_factory=Counts)
    segments: list[Segment] = field(default_factory=list)
    began: int = 0
    ended: int = 0
    result: Any = None

    @property
    def parts(self) -> dict[str, float]:
        """Milliseconds of each part."""
        total: Counter[str] = Counter()
        for segment in self.segments:
            total[NAMES[segment.part]] += segment.end - segment.start
        return {part: ns / MS for part, ns in total.items()}

    def ms(self, part: str, label: str | None = None) -> float:
        """Milliseconds of a part, or of those of its segments that have a label."""
        found = [s for s in self.segments if NAMES[s.part] == part and (label is None or s.label == label)]
        return sum(s.end - s.start for s in found) / MS

    def between(self, start: int, end: int) -> dict[str, float]:
        """Milliseconds of each part in a stretch of time."""
        total: Counter[str] = Counter()
        for segment in self.segments:
            total[NAMES[segment.part]] += max(0, min(segment.end, end) - max(segment.start, start))
        return {part: ns / MS for part, ns in total.items() if ns}

    def is_all(self, part: str, start: int, end: int, within: float = 1, but: Container[str] = ()) -> None:
        """Assert that a stretch of time is charged to a part, but for steps, within so many ms or 2 %.

        Args:
            part: name of the part.
            start: of the stretch.
            end: of the stretch.
            within: ms.
            but: other parts that may be there: `loop`, where the end is only known from what ran after it.
        """
        found = self.between(start, end)
        other = sum(ms for name, ms in found.items() if name not in (part, "route") and name not in but)
        assert other <= max(within, 0.02 * (end - start) / MS), (part, found)

    def labels(self, part: str) -> list[str]:
        """Labels of a part's segments, in order, neighbours of one label as one."""
        labels = [s.label for s in self.segments if NAMES[s.part] == part]
        return [label for i, label in enumerate(labels) if not i or labels[i - 1] != label]


async def record(work: Work, request: Recorded | None = None) -> Recorded:
    """Run `work` as a request's, on a loop that `hooked` has armed."""
    recorded = request or Recorded()
    strand = Strand(clock(), request=recorded)

    async def called() -> None:
        drives(strand)
        try:
            recorded.result = await drive(strand, work())
        except BaseException as error:
            recorded.result = error
            if isinstance(error, asyncio.CancelledError):
                raise

    task = asyncio.get_running_loop().create_task(called())
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
    recorded.began, recorded.ended = strand.began, strand.ended
    recorded.segments = split(strand, strand.began, strand.ended)
    total = sum(segment.end - segment.start for segment in recorded.segments)
    assert total == strand.ended - strand.began
    assert not recorded.journal.errors, recorded.journal.errors[0]
    return recorded


async def hooked(main: Coroutine[Any, Any, Any], beside: Awaitable[object] | None = None) -> Any:
    """Run `main` on a loop with its hooks armed; `beside` runs as somebody else's task."""
    hooks = LoopHooks(asyncio.get_running_loop())
    hooks.arm()
    other = asyncio.ensure_future(beside) if beside is not None else None
    try:
        return await main
    finally:
        if other is not None:
            await other
        hooks.disarm()
