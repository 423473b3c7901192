"""A call as the scenario makes it, and the attempts on the wire that it takes."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

import gevent
from gevent.event import AsyncResult
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError

from timesplit.loadgen.records import UNKNOWN

if TYPE_CHECKING:
    from timesplit.loadgen.recorder import Recorder

UNFINISHED: Final = "unfinished"


class Burst:
    """The gate at which the requests of a burst wait until all of them are ready to be written.

    Each has its message made and a connection of its own open, so that what follows the instant is only the
    writing itself: 100 requests that first had to be built and connected would not be a burst. One greenlet
    writes them all: were each to wake up for it, answers to the first would be dealt with before the last is sent.

    Attributes:
        number: number of the burst within its stage and route.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._members: list[tuple[Callable[[int], None], AsyncResult]] = []

    @property
    def ready(self) -> int:
        """Requests that wait."""
        return len(self._members)

    def take_part(self, write: Callable[[int], None]) -> None:
        """Wait for the burst; it calls `write` with the instant at which it was due."""
        written = AsyncResult()
        self._members.append((write, written))
        written.get()

    def begin(self) -> None:
        """Write all that is ready."""
        instant = monotonic_ns()
        for write, written in self._members:
            try:
                write(instant)
            except OSError as failure:
                written.set_exception(failure)
            else:
                written.set()


class Call:
    """A request as the scenario asks for it: one attempt, and one more for each redirect.

    Attributes:
        recorder: keeps its records.
        name: request name: method and route template.
        due: when the next attempt is due: first the call's own instant, then the end of the hop before.
        judged: whether the scenario says itself if the answer was right (`catch_response`).
        burst: the burst that it is part of.
        gate: the burst that its first attempt still has to wait for.
        last: its newest attempt.
    """

    __slots__ = ("burst", "due", "gate", "judged", "last", "name", "recorder")

    def __init__(
        self, recorder: Recorder, name: str, due: int, *, judged: bool = False, burst: Burst | None = None
    ) -> None:
        self.recorder, self.name, self.due, self.judged = recorder, name, due, judged
        self.burst = self.gate = burst
        self.last: Attempt | None = None


class Attempt:
    """One try on the wire. Times are CLOCK_MONOTONIC ns; UNKNOWN where there is none.

    Attributes:
        trace: lower half of its trace id, 8 bytes.
        span: its client span id, 8 bytes.
        stage: number of the stage's name.
        error: why it failed, None if it did not; meant only once it has ended.
        ended: when its answer was complete, or it failed; UNKNOWN while it is open.
    """

    __slots__ = (
        "bytes",
        "call",
        "connect_ns",
        "done",
        "ended",
        "error",
        "first_byte",
        "intended",
        "method",
        "reused",
        "sent",
        "span",
        "stage",
        "status",
        "trace",
    )

    def __init__(self, call: Call, method: str, stage: int, trace: bytes, span: bytes) -> None:
        self.call, self.method, self.stage, self.trace, self.span = call, method, stage, trace, span
        self.intended = call.due
        self.sent = self.first_byte = self.done = self.ended = self.connect_ns = UNKNOWN
        self.reused = self.status = self.bytes = UNKNOWN
        self.error: str | None = None


current: ContextVar[Call | None] = ContextVar("timesplit_call", default=None)
"""The call that this greenlet is making."""


def error_of(failure: BaseException, *, at_end: bool = False) -> str:
    """Return the word of schema.ERRORS for what went wrong on the wire.

    Args:
        failure: what was raised.
        at_end: whether the other side had closed the connection.
    """
    match failure:
        case gevent.GreenletExit():
            return UNFINISHED
        case TimeoutError() | gevent.Timeout():
            return "timeout"
        case ConnectionRefusedError():
            return "refused"
        case ConnectionError() | HTTPConnectionClosed():
            return "reset"
        case HTTPParseError() if at_end:
            return "reset"
    return "other"
