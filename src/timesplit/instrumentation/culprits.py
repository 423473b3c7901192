"""Who keeps a loop busy: its long steps one by one, with their line of code, and the many short ones as a crowd.

A long step is named by what the watchdog saw it in; where it was too short to be seen, by the function that answers
the request, or that the task runs. A pause of the garbage collector is cut out of the step in which it came.
"""

import asyncio
import gc
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from timesplit.instrumentation.journal import Journal
from timesplit.instrumentation.layout import UNKNOWN
from timesplit.instrumentation.ledger import Strand
from timesplit.instrumentation.loop import LONG_STEP, LoopHooks, Told, clock
from timesplit.instrumentation.places import NOWHERE, Place, deployed, place_of_code, place_of_function, short

if TYPE_CHECKING:
    from timesplit.instrumentation.watchdog import Watchdog

WINDOW: Final = 100_000_000  # ns; the crowd's busy time is added up over this long
TASKS: Final = "tasks"  # owner, in the crowd, of the steps of tasks outside any request
_MANY_PAUSES: Final = 100


class Culprits(Told):
    """What is recorded of one loop's steps."""

    def __init__(self, journal: Journal, watchdog: "Watchdog") -> None:
        self.journal = journal
        self.hooks: LoopHooks | None = None
        self.seen: Counter[Place] = Counter()  # where the watchdog saw the step that began at `seen_since`
        self.seen_since = 0
        self.open: dict[int, int] = {}  # start of a step that still runs → slot of its record
        self._watchdog = watchdog
        self._crowd: dict[tuple[str, str], int] = {}
        self._window = clock()
        self._pauses: list[tuple[int, int]] = []

    def wake(self) -> None:
        """Have the steps watched again."""
        try:
            self._watchdog.wake(self)
        except Exception:  # no further thread can be started, say
            self.failed()

    def failed(self) -> None:
        """Count an error of ours."""
        try:
            self.journal.failed()
        except Exception:
            return  # the journal is closed: nobody asks any more

    def long_step(self, work: Strand | None, start: int, end: int, cpu: int) -> None:
        """Record a step, and what of it was blocked."""
        request: Any = work.request if work is not None else None
        if request is not None:
            request.long_step(start, end, cpu)
        at = self.open.pop(start, 0)
        pauses = [pause for pause in self._pauses if pause[1] > start]
        self._pauses.clear()
        if 2 * cpu < end - start and self._watchdog.kept_from_running(start, end):
            self.journal.cancel(at)  # a thread did it, and is recorded as that
            return
        place = self.place_of_step(request, start)
        for since, until in _without(pauses, start, end):
            used = cpu * (until - since) // (end - start)
            fields = self.fields(request, since, until, used, self.owner_of(request), place)
            self.journal.end_step(at, *fields) if at else self.journal.step(*fields)
            at = 0
        self.journal.cancel(at)

    def pause(self, generation: int, start: int, end: int) -> None:
        """Record a pause of the garbage collector."""
        self.journal.step(*self.fields(None, start, end, UNKNOWN, f"gc {generation}", NOWHERE))
        if len(self._pauses) < _MANY_PAUSES:
            self._pauses.append((start, end))

    def short_steps(self, method: str, route: str, ns: int, now: int) -> None:
        """Add what a request's short steps took to the crowd."""
        if now - self._window >= WINDOW:
            self.roll(now)
        owner = (method, route)
        self._crowd[owner] = self._crowd.get(owner, 0) + ns

    def roll(self, now: int) -> None:
        """Write down the crowd of the window that is over; the next one begins now."""
        crowd, self._crowd = self._crowd, {}
        start, self._window = self._window, now
        hooks = self.hooks
        if hooks is not None and hooks.others:
            crowd[TASKS, ""] = hooks.others
            hooks.others = 0
        if crowd:
            text = self.journal.text
            rows = [(text(f"{method} {route}".rstrip()), ns) for (method, route), ns in crowd.items()]
            self.journal.busy(sum(crowd.values()))
            # After a while without requests, what there was lies at the window's beginning.
            self.journal.crowd(start, min(now, start + WINDOW), sorted(rows, key=_busy, reverse=True))

    def place_of_step(self, request: Any, start: int) -> Place:
        """Return where a step was, or where it probably was."""
        seen = dict(self.seen)  # in one go: the watchdog is another thread
        if self.seen_since == start and seen:
            return max(seen, key=seen.__getitem__)
        if request is not None:
            endpoint = place_of_function(request.scope.get("endpoint"))
            deployed(endpoint.file)
            return endpoint
        return _place_of_task()

    def owner_of(self, request: Any) -> str:
        """Return what a step is called."""
        if request is not None:
            return f"{request.scope.get('method', 'WS')} {request.route or '?'}"
        task = asyncio.current_task()
        name = getattr(task.get_coro(), "__qualname__", "") if task is not None else ""
        return f"task {short(name)}" if name else "callback"

    def fields(
        self, request: Any, start: int, end: int, cpu: int, owner: str, place: Place
    ) -> tuple[int, int, int, int, int, int, int, int]:
        """Return the values of a record of STEP."""
        text = self.journal.text
        number = 0 if request is None else request.number
        return number, start, end, cpu, text(owner), text(place.file), place.line, text(place.function)


class Collections:
    """Sees the garbage collector at work, for all loops of the process."""

    def __init__(self, told: "list[Culprits]") -> None:
        self._told = told
        self._start = 0

    def arm(self) -> None:
        """Begin."""
        if self._called not in gc.callbacks:
            gc.callbacks.append(self._called)

    def disarm(self) -> None:
        """End."""
        if self._called in gc.callbacks:
            gc.callbacks.remove(self._called)

    def _called(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._start = clock()
            return
        now = clock()
        if now - self._start < LONG_STEP:
            return
        for culprits in self._told:
            try:
                culprits.pause(info["generation"], self._start, now)
            except Exception:
                culprits.failed()


def _place_of_task() -> Place:
    """Return where the coroutine of the task that runs just now begins."""
    task = asyncio.current_task()
    frame = getattr(task.get_coro(), "cr_frame", None) if task is not None else None
    # `driven` of the loop's hooks holds the task's own coroutine.
    code = getattr(frame.f_locals.get("coro"), "cr_code", None) if frame is not None else None
    return NOWHERE if code is None else place_of_code(code)


def _busy(row: tuple[int, int]) -> int:
    return row[1]


def _without(pauses: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """Return the stretches of a step that are long and no pauses."""
    stretches = []
    for since, until in [*pauses, (end, end)]:
        stretches.append((start, since))
        start = until
    return [(since, until) for since, until in stretches if until - since >= LONG_STEP]
