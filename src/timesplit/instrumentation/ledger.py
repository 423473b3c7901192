"""The account of a request: at each instant it is in exactly one state, and the states' times add up.

A request runs as one or more *strands*: its own coroutine, and the tasks that it starts. A strand is running,
ready (it could run, but its loop is busy) or waiting for something of a kind. Seams tell a strand's events with
their times; nothing here reads a clock. When the request is over, `split` lays its strands on one timeline:

    running beats ready beats waiting

and where all wait, the wait that counts is the one that was last to finish among those that led to the response:
it is found by following, from the request's own strand, who woke whom.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from timesplit.parts import CODES

ROUTE: Final = CODES["route"]
LOOP: Final = CODES["loop"]
OFFLOAD_WAIT: Final = CODES["offload_wait"]
OFFLOAD_RUN: Final = CODES["offload_run"]
OTHER_WAIT: Final = CODES["other_wait"]
MANY_WAITS: Final = 1_000  # of a strand
SUMMED: Final = "summed up"  # label of segments that stand for very many
MANY_STRANDS: Final = (
    64  # beyond, only strands on the path of wake-ups are laid on the timeline: a bound on the work
)


class Wait(NamedTuple):
    """A strand's suspension, from the end of a step to the start of the next.

    Attributes:
        part: code of the part that the wait is charged to while it lasts.
        label: what is waited for, in a word or two.
        suspended: end of the step before.
        ready: when what it waited for had come; from here on it waited for its loop.
        resumed: start of the next step.
        waker: the strand whose step made it ready, or None (I/O, a timer, a thread).
    """

    part: int
    label: str
    suspended: int
    ready: int
    resumed: int
    waker: "Strand | None"


class Segment(NamedTuple):
    """A stretch of a request's time that is charged to one part, given by its code. Times in ns."""

    part: int
    label: str
    start: int
    end: int


class Nowhere(list[Any]):
    """A list that stays empty: what a strand still tells when nobody will ask any more."""

    def append(self, _: object) -> None:
        """Forget it."""


class Timer(Protocol):
    """A loop's timer handle."""

    def cancelled(self) -> bool:
        """Tell whether it was cancelled."""


class Strand:
    """A coroutine that works for a request: its own, or that of a task it started.

    Attributes:
        creator: the strand in whose step it was made; None for the request's own.
        root: the request's own strand; None for that itself.
        known: the task that drives it knows it.
        born: when its task was made: from here it was ready.
        began: start of its first step.
        ended: end of its last step; 0 while it is open.
        busy: time in its steps.
        awaited: whether somebody waited for its end; what nobody waits for is not the request's time.
        part, label: what its next suspension would be a wait for; hooks set them around an await. A child begins
            with its maker's: a task made inside a hooked call works for that call.
        source: the connection that it waits for, where a hook knows it: the kernel can tell when the reply came.
        freed: while it hands over what it held (a thread's token): since when nobody used that.
        request: what it works for; its children share it.
        children: all tasks that were started for the request, by whichever strand; one list for all of them.
        due: when a timer that it has set since its last step is due, with the timer's handle.
    """

    # On the class: most of a request's strands never need most of these, and setting them all costs.
    creator: "Strand | None" = None
    root: "Strand | None" = None
    request: object = None
    began = ended = suspended = ready = freed = busy = 0
    awaited = True
    known = False
    part = OTHER_WAIT
    label = ""
    source: object = None
    due: tuple[int, Timer] | None = None
    waker: "Strand | None" = None

    def __init__(self, born: int, creator: "Strand | None" = None, request: object = None) -> None:
        self.born = born
        self.waits: list[Wait] = []
        if creator is None:
            self.request = request
            self.children: list[Strand] = []
        else:
            self.creator = creator
            self.root = creator.root or creator
            self.awaited = False
            self.request = creator.request
            self.part = creator.part
            self.label = creator.label
            self.children = creator.children
            self.children.append(self)

    @property
    def strands(self) -> "list[Strand]":
        """All of the request's strands, its own first."""
        return [self.root or self, *self.children]

    def step(self, now: int) -> None:
        """A step starts."""
        if not self.began:
            self.began = now
            return
        self.waits.append(Wait(self.part, self.label, self.suspended, self.ready or now, now, self.waker))
        self.suspended = self.ready = 0
        self.waker = None
        self.due = None
        if len(self.waits) >= MANY_WAITS:
            (self.root or self).many_waits(self, now)

    def many_waits(self, strand: "Strand", now: int) -> None:
        """One of the request's strands keeps many waits. Told to the request's own strand."""

    def suspend(self, now: int) -> None:
        """A step ended, and the coroutine is suspended."""
        self.suspended = now

    def wake(self, now: int, waker: "Strand | None") -> None:
        """What it waits for has come: it is ready. Later calls before its step change nothing.

        A timer that was due earlier than it could fire, because the loop was busy, made it ready when it was due;
        where it waits for a connection, a timer is only a bound on that wait.
        """
        if self.suspended and not self.ready:
            if self.due is not None and self.source is None:
                due, timer = self.due
                if due < now and not timer.cancelled():
                    now = due
            self.ready = max(now, self.suspended)
            if waker is not None and waker.children is self.children:
                self.waker = waker

    def end(self, now: int) -> None:
        """Its last step ended."""
        self.ended = now

    def note(self, part: int, since: int) -> None:
        """One of the request's strands does something else since then. Told to the request's own strand."""

    def over(self, now: int, error: BaseException | None) -> None:
        """Its coroutine returned, or raised `error`."""
        self.end(now)
        if self.root is not None:
            self.root.child_over(self)

    def child_over(self, child: "Strand") -> None:
        """A task that works for the same request is over. Told to the request's own strand."""

    def all_waits(self, until: int) -> list[Wait]:
        """Return its waits, with the one that is open, if one is, as if its next step began at `until`."""
        if not self.suspended or self.suspended > until:
            return self.waits
        ready = min(self.ready or until, until)
        return [*self.waits, Wait(self.part, self.label, self.suspended, ready, until, self.waker)]


class Run(Strand):
    """A call that another thread makes for a request: a strand without steps, whose time is parts throughout.

    It is not among the request's strands: it counts where a strand waited for it, as that strand's waker.
    """

    awaited = False

    def __init__(self, born: int, creator: Strand, part: int = OFFLOAD_WAIT, label: str = "") -> None:
        self.creator = creator.creator if creator.__class__ is Run else creator
        self.root = creator.root or creator
        self.request = creator.request
        self.children = creator.children
        self.born = self.suspended = born
        self.part = part
        self.label = label
        self.waits = []

    def change(self, now: int, part: int, label: str) -> None:
        """What it does is something else from now on."""
        self._until(now)
        self.part = part
        self.label = label
        if self.root is not None:
            self.root.note(part, now)

    def end(self, now: int) -> None:
        """The call returned."""
        self._until(now)
        self.ended = now
        self.suspended = 0

    def _until(self, now: int) -> None:
        if now > self.suspended:
            self.waits.append(Wait(self.part, self.label, self.suspended, now, now, None))
            self.suspended = now
            if len(self.waits) >= MANY_WAITS:
                done = [Segment(wait.part, wait.label, wait.suspended, wait.ready) for wait in self.waits]
                self.waits = [Wait(s.part, s.label, s.start, s.end, s.end, None) for s in summed(done)]

    def all_waits(self, until: int) -> list[Wait]:
        """Return what it did; the thread may go on meanwhile, where nobody waits for it any more."""
        since = self.suspended
        if not since or since > until:
            return self.waits
        return [*self.waits, Wait(self.part, self.label, since, until, until, None)]


def split(last: Strand, start: int, end: int) -> list[Segment]:
    """Partition [start, end] among the parts of a request's steps and waits.

    Args:
        last: the strand that sent the response's last byte; from it the wake-ups are followed back.
        start: when the request's first step began.
        end: when the response ended.

    Returns:
        Adjoining segments in order, each longer than zero, the first from `start` and the last to `end`;
        neighbours differ in part or label. Empty where `end` is not after `start`.
    """
    if end <= start:
        return []
    if not last.children:
        return _joined(_alone(last, start, end))
    return _joined(_overlaid(last, start, end))


def summed(segments: Sequence[Segment]) -> list[Segment]:
    """Return the same time with one segment for each part, one after the other: the order is lost, no time is."""
    totals: dict[int, int] = {}
    for segment in segments:
        totals[segment.part] = totals.get(segment.part, 0) + segment.end - segment.start
    at = segments[0].start if segments else 0
    laid = []
    for part, ns in sorted(totals.items()):
        laid.append(Segment(part, SUMMED, at, at + ns))
        at += ns
    return laid


def _alone(strand: Strand, start: int, end: int) -> Iterator[Segment]:
    """One strand: its waits, and between them its steps."""
    at = start
    for wait in strand.all_waits(end):
        yield Segment(ROUTE, "", at, min(wait.suspended, end))
        if wait.waker is None:
            yield Segment(wait.part, wait.label, max(wait.suspended, start), min(wait.ready, end))
        else:
            yield from _waits(wait.waker, max(wait.suspended, start), min(wait.ready, end), MANY_STRANDS)
        yield Segment(LOOP, "", max(wait.ready, start), min(wait.resumed, end))
        at = max(wait.resumed, start)
    yield Segment(ROUTE, "", at, end)


def _overlaid(last: Strand, start: int, end: int) -> Iterator[Segment]:
    """Several strands: sweep over their events, running before ready before waiting."""
    path = set(_woke(last, end))
    counted = [strand for strand in last.strands if strand.began and (strand in path or strand.awaited)]
    if len(counted) > MANY_STRANDS:
        counted = [strand for strand in counted if strand in path]
    changes: list[tuple[int, int, int]] = [(start, 0, 0), (end, 0, 0)]
    for strand in counted:
        changes.extend(_changes(strand, end))
    changes.sort()
    at, running, ready = start, 0, 0
    for when, runs, readies in changes:
        until = min(max(when, start), end)
        if until > at:
            if running:
                yield Segment(ROUTE, "", at, until)
            elif ready:
                yield Segment(LOOP, "", at, until)
            else:
                yield from _waits(last, at, until, MANY_STRANDS)
            at = until
        running += runs
        ready += readies


def _changes(strand: Strand, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (when, change of running strands, change of ready strands)."""
    if strand.creator is None:  # the request's own is called, not scheduled: it runs from the start
        yield strand.born, 1, 0
    else:
        yield strand.born, 0, 1
        yield strand.began, 1, -1
    for wait in strand.all_waits(end):
        yield wait.suspended, -1, 0
        yield wait.ready, 0, 1
        yield wait.resumed, 1, -1
    yield strand.ended or max(end, strand.began), -1, 0


def _woke(last: Strand, end: int) -> Iterator[Strand]:
    """Yield the strands from which wake-ups, or their making, lead to `last`."""
    found = {last}
    open_ends = [last]
    while open_ends:
        strand = open_ends.pop()
        yield strand
        near = [wait.waker for wait in strand.all_waits(end) if wait.waker is not None]
        if strand.creator is not None:
            near.append(strand.creator)
        for other in near:
            if other not in found:
                found.add(other)
                open_ends.append(other)


def _waits(strand: Strand, start: int, end: int, depth: int) -> Iterator[Segment]:
    """Charge [start, end], in which no strand ran or was ready, to the wait that led on.

    A wait that was ended by another strand's step is that strand's wait; before a strand was made, its maker's.
    """
    if strand.creator is not None and start < strand.born and depth:
        until = min(end, strand.born)
        yield from _waits(strand.creator, start, until, depth - 1)
        start = until
    waits = strand.all_waits(end)
    for wait in waits[bisect_right(waits, start, key=_ready) :]:
        if wait.suspended >= end:
            break
        since, until = max(start, wait.suspended), min(end, wait.ready)
        if since > start:  # the strand itself was over, or not waiting: nothing better is known
            yield Segment(OTHER_WAIT, "", start, since)
        if wait.waker is not None and depth:
            yield from _waits(wait.waker, since, until, depth - 1)
        else:
            yield Segment(wait.part, wait.label, since, until)
        start = until
    if end > start:  # from a task's end on, only the loop keeps its callbacks from telling who waits for it
        yield Segment(LOOP if 0 < strand.ended <= start else OTHER_WAIT, "", start, end)


def _ready(wait: Wait) -> int:
    return wait.ready


def _joined(segments: Iterator[Segment]) -> list[Segment]:
    """Leave out empty segments, and join neighbours that are charged to the same."""
    joined: list[Segment] = []
    for segment in segments:
        if segment.end <= segment.start:
            continue
        if joined and joined[-1][:2] == segment[:2]:
            joined[-1] = joined[-1]._replace(end=segment.end)
        else:
            joined.append(segment)
    return joined
