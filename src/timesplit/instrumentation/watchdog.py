"""A thread that looks where long steps are, and which threads keep the loop from running.

It looks every PERIOD, while there are steps; after a while without any it sleeps until the next. A step pays two
stores for it. It is a thread of the interpreter: a step that keeps the interpreter's lock in a call of C is seen
only once that call is over.
"""

import os
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from timesplit.instrumentation.loop import LoopHooks, clock
from timesplit.instrumentation.places import Place, place_of

if TYPE_CHECKING:
    from timesplit.instrumentation.culprits import Culprits

PERIOD: Final = 5_000_000  # ns
QUIET: Final = 20  # periods without a step after which it sleeps
LATE: Final = (
    3_000_000  # ns; woken so much too late, it was kept waiting for the interpreter's lock, or for a core
)
_STRETCH: Final = 50_000_000  # ns; a thread that keeps running is recorded in stretches of at most this
_MOST: Final = 0.5  # share of the process's CPU time that a thread has to use to be the one


class _Watched(NamedTuple):
    """A loop, and the thread that runs it."""

    hooks: LoopHooks
    culprits: "Culprits"
    thread: int


class _Hog(NamedTuple):
    """A thread that runs, and where it was seen."""

    owner: str
    place: Place
    start: int
    end: int


class Watchdog:
    """Watches the loops of a process."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._ended: dict[int, int] = {}
        self._hog: _Hog | None = None
        self._last_hog: tuple[int, int] = (0, 0)
        self._cpu: dict[int, int] = {}
        self._cpu_at = 0

    def watch(self, hooks: LoopHooks, culprits: "Culprits") -> None:
        """Watch a loop that the calling thread runs."""
        culprits.hooks = hooks
        self._watched[id(culprits)] = _Watched(hooks, culprits, threading.get_ident())

    def wake(self, culprits: "Culprits") -> None:
        """Look again: a step begins."""
        watched = self._watched.get(id(culprits))
        if watched is not None:
            watched.hooks.asleep = False
        if self._thread is None and not self._stopped:
            self._thread = threading.Thread(target=self._run, name="timesplit watchdog", daemon=True)
            self._thread.start()
        self._awake.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._awake.set()

    def kept_from_running(self, start: int, end: int) -> bool:
        """Tell whether, for most of that time, another thread was seen to keep a loop from running."""
        hog = self._hog
        since, until = self._last_hog
        if hog is not None:
            since, until = (since if hog.start <= until else hog.start), hog.end + 2 * PERIOD
        return min(end, until) - max(start, since) > (end - start) * _MOST

    def _run(self) -> None:
        while not self._stopped:
            self._awake.wait()
            self._awake.clear()
            quiet = 0
            while quiet < QUIET and not self._stopped:
                due = clock() + PERIOD
                time.sleep(PERIOD / 1e9)
                try:
                    quiet = 0 if self._look(clock(), due) else quiet + 1
                except Exception:
                    quiet += 1
                    self._failed()
            self._rest()

    def _failed(self) -> None:
        for _, culprits, _ in list(self._watched.values()):
            culprits.failed()

    def _rest(self) -> None:
        now = clock()
        for hooks, culprits, _ in self._watched.values():
            hooks.asleep = True
            if hooks.since:  # it began just now
                self.wake(culprits)
            try:
                culprits.roll(now)
            except Exception:
                culprits.failed()

    def _look(self, now: int, due: int) -> bool:
        """Look at each loop once; tell whether any had a step."""
        active = False
        for key, watched in list(self._watched.items()):
            hooks, culprits, _ = watched
            try:
                if hooks.since or self._ended.get(key) != hooks.ended:
                    active = True
                    self._ended[key] = hooks.ended
                    self._look_at(watched, now)
            except Exception:
                culprits.failed()
        if active:
            self._look_for_hogs(now, now - due > LATE)
        return active

    def _look_at(self, watched: _Watched, now: int) -> None:
        """Note where a step is, if it has been long already."""
        hooks, culprits, thread = watched
        since, strand = hooks.since, hooks.strand
        if not since or now - since < PERIOD:
            return
        frame = sys._current_frames().get(thread)
        place = place_of(frame)
        del frame  # keeps a step's locals alive otherwise
        if hooks.since != since:
            return
        if culprits.seen_since != since:
            culprits.seen.clear()
            culprits.seen_since = since
        culprits.seen[place] += 1
        if since not in culprits.open:
            self._open(watched, since, strand, place, now)

    def _open(self, watched: _Watched, since: int, strand: Any, place: Place, now: int) -> None:
        """Record a step that still runs: should the process be killed in it, that is what is left."""
        hooks, culprits, _ = watched
        request = strand.request if strand is not None else None
        owner = culprits.owner_of(request) if request is not None else "task"
        at = culprits.journal.begin_step(*culprits.fields(request, since, now, 0, owner, place))
        culprits.open[since] = at
        if hooks.since != since:  # over already: whoever takes the slot out, it is taken once
            culprits.journal.cancel(culprits.open.pop(since, 0))

    def _look_for_hogs(self, now: int, late: bool) -> None:
        """Find the thread that ran most, if something keeps others waiting for the interpreter's lock."""
        if not late and self._hog is None:
            self._cpu.clear()
            return
        before, self._cpu = self._cpu, _cpu_of_threads()
        since, self._cpu_at = self._cpu_at, now
        ours = {watched.thread for watched in self._watched.values()} | {threading.get_ident()}
        ran = {thread: cpu - before[thread] for thread, cpu in self._cpu.items() if thread in before}
        others = {thread: ns for thread, ns in ran.items() if thread not in ours}
        most = max(others, key=others.__getitem__, default=None)
        # Of what the process got, not of the time: it may share its cores with others.
        if most is None or others[most] <= sum(ran.values()) * _MOST:
            self._write_hog()
            return
        self._note_hog(most, sys._current_frames().get(most), since, now)

    def _note_hog(self, thread: int, frame: FrameType | None, since: int, now: int) -> None:
        owner = f"thread {next((t.name for t in threading.enumerate() if t.ident == thread), '?')}"
        hog = self._hog
        if hog is not None and hog.owner == owner and now - hog.start < _STRETCH:
            self._hog = hog._replace(end=now)
            return
        self._write_hog()
        self._hog = _Hog(owner, place_of(frame), since, now)
        self._starved(True)

    def _write_hog(self) -> None:
        hog, self._hog = self._hog, None
        if hog is None:
            return
        first, until = self._last_hog
        self._last_hog = (first if hog.start <= until else hog.start), hog.end
        for _, culprits, _ in self._watched.values():
            fields = culprits.fields(None, hog.start, hog.end, hog.end - hog.start, hog.owner, hog.place)
            culprits.journal.step(*fields)
        self._starved(False)

    def _starved(self, starved: bool) -> None:
        for hooks, _, _ in self._watched.values():
            hooks.starved = starved


def _cpu_of_threads() -> dict[int, int]:
    """Return the CPU time of each thread of the interpreter by its identity; empty where the system does not tell.

    From /proc, not from the threads' clocks: asking the clock of a thread that has just ended can crash.
    """
    found = {}
    for thread in threading.enumerate():
        try:
            with open(f"/proc/{os.getpid()}/task/{thread.native_id}/schedstat", "rb") as file:
                found[thread.ident or 0] = int(file.read().split()[0])
        except (OSError, ValueError, IndexError):
            continue
    return found
