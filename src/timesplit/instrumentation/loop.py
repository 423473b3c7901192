"""Steps, readiness and child tasks, on asyncio and uvloop alike.

A strand's coroutine is driven by `drive`, which stamps each step. When what a suspended task waits for has come,
the loop is asked to call the task soon: `call_soon`, replaced on the loop instance, stamps that. Both are all that
a loop without a hook of its own (uvloop) lets us see, and all that is needed.

Whatever fails here is counted, and the task goes on as without us.
"""

import asyncio
import threading
import time
from asyncio import AbstractEventLoop, Future, Handle, Task, TimerHandle, iscoroutine
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from types import BuiltinFunctionType, coroutine
from typing import Any

from timesplit.instrumentation.awaited import name_of_wait
from timesplit.instrumentation.ledger import LOOP, OTHER_WAIT, ROUTE, Run, Strand
from timesplit.instrumentation.readiness import REMOTE, came

clock = time.monotonic_ns
cpu_clock = time.thread_time_ns  # a system call: read again only when the last reading is LONG_STEP old
LONG_STEP = 1_000_000  # ns; steps from this length on are recorded one by one

# id of a code object → kept alive: coroutines in which servers run a request, which is driven inside them.
SERVING: dict[int, object] = {}


class Here(threading.local):
    """What this thread runs just now.

    Attributes:
        loop: the hooks of the loop that this thread runs.
        run: in a worker thread, the request's call that it makes.
        over: in a worker thread, that call, from its end until the loop is told.
    """

    loop: "LoopHooks | None" = None
    run: Run | None = None
    over: Run | None = None

    @property
    def strand(self) -> Strand | None:
        """On a loop's thread, the strand in whose step we are."""
        loop = self.loop
        return None if loop is None else loop.strand


here = Here()


def current_request() -> Any:
    """Return the request for which this thread works just now, or None."""
    loop = here.loop
    worker = here.run if loop is None else loop.strand
    return None if worker is None else worker.request


_STRAND = "_timesplit_strand"  # attribute of a task: the strand that it drives
_READY = "_timesplit_ready"  # attribute of a future: when a thread asked for it to be set, or the call that it made


_NEVER = 1e9  # s


class Told:
    """What hears of a loop's steps; this one does nothing with it."""

    def long_step(self, work: Strand | None, start: int, end: int, cpu: int) -> None:
        """A step of LONG_STEP or more ended.

        Args:
            work: the strand whose step it was, None for a task that works for no request.
            start: of the step.
            end: of the step.
            cpu: CPU time of the thread in it.
        """

    def short_steps(self, method: str, route: str, ns: int, now: int) -> None:
        """Add what a request's steps below LONG_STEP took."""

    def wake(self) -> None:
        """A step begins, after a while without any."""

    def failed(self) -> None:
        """Something of ours failed."""


class LoopHooks:
    """The hooks of one event loop, set on the instance: uvloop's class cannot be changed.

    Attributes:
        told: what hears of its steps.
        strand: the strand in whose step the loop is.
        since: start of the step in which the loop is; 0 in none.
        ended: end of the last step.
        asleep: nobody watches the steps: `told.wake` is to be called at the next one.
        starved: another thread keeps the loop from running, whatever it has to do.
        poll, before: when the loop last asked for what has come, and when the time before, as far as is seen.
        data: when data of a client last came.
        busy_from, busy_to: the last stretch of long steps with little between them.
        others: time in short steps of tasks that work for no request, since somebody took it from here.
    """

    def __init__(self, loop: AbstractEventLoop, told: Told | None = None) -> None:
        self.told = told or Told()
        self.strand: Strand | None = None
        self.since = self.ended = self.poll = self.before = self.data = 0
        self.busy_from = self.busy_to = self.others = 0
        self.asleep = True
        self.starved = False
        self._cpu = self._cpu_at = 0
        self._loop = loop
        self._finishing: Strand | None = None
        self._factory = loop.get_task_factory()
        self._call_soon = loop.call_soon
        self._call_at = loop.call_at
        self._call_later = loop.call_later
        self._call_soon_threadsafe = loop.call_soon_threadsafe
        self._names = ("call_soon", "call_at", "call_later", "call_soon_threadsafe")

    def arm(self) -> None:
        """Set the hooks."""
        for name in self._names:
            setattr(self._loop, name, getattr(self, name))
        self._loop.set_task_factory(self.make_task)
        here.loop = self

    def disarm(self) -> None:
        """Take the hooks back, but for those that somebody else has replaced since."""
        for name in self._names:
            if getattr(self._loop, name, None) == getattr(self, name):
                delattr(self._loop, name)
        if self._loop.get_task_factory() == self.make_task:
            self._loop.set_task_factory(self._factory)
        if here.loop is self:
            here.loop = None

    @coroutine
    def drive(self, strand: Strand, coro: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run a coroutine to its end, telling its strand of each step; everything else passes through unchanged."""
        value: Any = None
        error: BaseException | None = None
        strand.began = start = clock()
        while True:
            outer, since = self.strand, self.since
            self.strand = strand
            self.since = start
            if self.asleep or start - self._cpu_at >= LONG_STEP:
                self._look(start)
            try:
                awaited = coro.send(value) if error is None else coro.throw(error)
            except StopIteration as end:
                self.strand = outer
                self.since = since
                self._over(strand, start, None)
                return end.value
            except BaseException as raised:
                self.strand = outer
                self.since = since
                self._over(strand, start, raised)
                raise
            error = None  # keeps no traceback alive while suspended
            self.strand = outer
            self.since = since
            self._suspended(strand, start)
            try:
                value = yield awaited
            except BaseException as thrown:  # cancellation and close() go to the coroutine, as without us
                error = thrown
            start = self._resumed(strand, coro)

    @coroutine
    def drive_other(self, coro: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run the coroutine of a task that works for no request: only its long steps are of interest."""
        value: Any = None
        error: BaseException | None = None
        while True:
            start = clock()
            outer, since = self.strand, self.since
            self.strand = None
            self.since = start
            if self.asleep or start - self._cpu_at >= LONG_STEP:
                self._look(start)
            try:
                awaited = coro.send(value) if error is None else coro.throw(error)
            except StopIteration as end:
                self._other_over(start, outer, since)
                return end.value
            except BaseException:
                self._other_over(start, outer, since)
                raise
            error = None
            self._other_over(start, outer, since)
            try:
                value = yield awaited
            except BaseException as thrown:
                error = thrown

    def _look(self, start: int) -> None:
        """A step starts: have it watched, and know with how much CPU time it begins."""
        try:
            if start - self._cpu_at >= LONG_STEP:
                self._cpu = cpu_clock()
                self._cpu_at = start
            if self.asleep:
                self.told.wake()
        except Exception:
            self.told.failed()

    def _suspended(self, strand: Strand, start: int) -> None:
        """A step ended, and its coroutine waits for something."""
        strand.suspended = self.ended = now = clock()
        try:
            if not strand.known:
                strand.known = True
                drives(strand)
            strand.busy += now - start
            (strand.root or strand).note(strand.part, now)
            if now - start >= LONG_STEP:
                self._long(strand, start, now)
        except Exception:
            self.told.failed()

    def _resumed(self, strand: Strand, coro: Any) -> int:
        """What a coroutine waited for has come, and its next step starts; return when."""
        now = clock()
        try:
            (strand.root or strand).note(ROUTE, now)
            named = now - strand.suspended >= LONG_STEP and strand.part == OTHER_WAIT and not strand.label
            if named:
                strand.label = name_of_wait(coro)
            strand.step(now)
            if named:
                strand.label = ""
        except Exception:
            self.told.failed()
        return now

    def _other_over(self, start: int, outer: Strand | None, since: int) -> None:
        self.strand = outer
        self.since = since
        self.ended = now = clock()
        if now - start < LONG_STEP:
            self.others += now - start
            return
        try:
            self._long(None, start, now)
        except Exception:
            self.told.failed()

    def _over(self, strand: Strand, start: int, error: BaseException | None) -> None:
        self.ended = now = clock()
        try:
            strand.busy += now - start
            if now - start >= LONG_STEP:
                self._long(strand, start, now)
            strand.over(now, error)
        except Exception:
            self.told.failed()

    def _long(self, strand: Strand | None, start: int, end: int) -> None:
        if start - self.busy_to > LONG_STEP:
            self.busy_from = start
        self.busy_to = end
        cpu, before, at = cpu_clock(), self._cpu, self._cpu_at
        self._cpu, self._cpu_at = cpu, end
        # The reading is at most LONG_STEP older than the step; how much of that ran is not known: half.
        used = min(max(cpu - before - (start - at) // 2, 0), end - start)
        self.told.long_step(strand, start, end, used)

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Handle:
        """Stamp the task that becomes ready, then do what the loop does."""
        try:
            task = getattr(callback, "__self__", None)
            if task.__class__ is Task:
                strand = getattr(task, _STRAND, None)
                if strand is not None:
                    self._wake(strand, args)
            elif args:
                ended = _ended_by(args[0])
                # `background_tasks.discard` and the like: nobody waits for that task.
                if ended is not None and callback.__class__ is not BuiltinFunctionType:
                    ended.awaited = True
                    args = (ended, callback, *args)
                    callback = self._finish
        except Exception:
            self.told.failed()
        return self._call_soon(callback, *args, context=context)

    def _wake(self, strand: Strand, args: tuple[Any, ...]) -> None:
        now = clock()
        waker = self.strand or self._finishing
        if not args:  # `sleep(0)` and the like: it waits for nothing but its loop
            now = strand.suspended
        else:
            ended = _ended_by(args[0])
            if ended is not None:
                ended.awaited = True
                waker = waker or ended
            elif waker is None:
                now = getattr(args[0], _READY, 0) or self._came(strand, args[0], now)
        if waker is not None:
            if waker.__class__ is Run:
                now = waker.ended or now
            elif waker.freed:
                now = waker.freed
        strand.wake(now, waker)
        (strand.root or strand).note(LOOP, now)

    def _came(self, strand: Strand, future: object, now: int) -> int:
        """Return when that came from outside for which a strand waited."""
        if strand.source is None and strand.part not in REMOTE:
            return now
        if isinstance(future, Future) and future.cancelled():
            return now
        return came(strand, now, self.busy_from, self.busy_to)

    def _finish(self, ended: Strand, callback: Callable[..., object], *args: Any) -> None:
        """Run a callback of what finished, knowing whose it is: gather and task groups wake their waiter here."""
        self._finishing = ended
        try:
            callback(*args)
        finally:
            self._finishing = None

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Handle:
        """Stamp the future that a thread sets: from here on, what waits for it waits for the loop."""
        future = getattr(callback, "__self__", None)
        if not isinstance(future, Future):
            future = args[0] if args else None
        if future.__class__ is Future and not hasattr(future, _READY):
            setattr(future, _READY, here.over or clock())
            here.over = None
        return self._call_soon_threadsafe(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> TimerHandle:
        """Note when the timer is due: while the loop is busy it cannot fire."""
        handle = self._call_later(delay, callback, *args, context=context)
        if self.strand is not None:
            self._timed(self.strand, delay, handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> TimerHandle:
        """Note when the timer is due, as `call_later` does."""
        handle = self._call_at(when, callback, *args, context=context)
        if self.strand is not None:
            self._timed(self.strand, when - self._loop.time(), handle)
        return handle

    def _timed(self, strand: Strand, delay: float, handle: TimerHandle) -> None:
        try:
            if delay < _NEVER:  # `sleep(math.inf)` is never due
                due = clock() + int(delay * 1e9)
                if strand.due is None or due < strand.due[0]:
                    strand.due = (due, handle)
        except Exception:
            self.told.failed()

    def make_task(self, loop: AbstractEventLoop, coro: Any, **options: Any) -> Any:
        """Make a task; in a request's step, one whose steps are the request's too."""
        strand = None
        try:
            creator = self.strand
            if id(getattr(coro, "cr_code", None)) in SERVING:
                pass
            elif creator is not None and creator.request is not None:
                strand = Strand(clock(), creator)
                coro = self._wrapped(coro, strand)
            else:
                coro = self._wrapped(coro, None)
        except Exception:
            self.told.failed()
        task = self._factory(loop, coro, **options) if self._factory else Task(coro, loop=loop, **options)
        if strand is not None:
            strand.known = True
            with suppress(AttributeError):  # a task of another factory's making
                setattr(task, _STRAND, strand)
        return task

    def _wrapped(self, coro: Any, strand: Strand | None) -> Any:
        if not iscoroutine(coro):  # the task's constructor says what is wrong with it
            return coro

        async def driven() -> Any:
            return await (self.drive_other(coro) if strand is None else self.drive(strand, coro))

        driven.__name__ = getattr(coro, "__name__", "driven")
        driven.__qualname__ = getattr(coro, "__qualname__", "driven")
        return driven()


def drive(strand: Strand, coro: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
    """Drive a strand on the loop that runs here, which must be armed."""
    loop = here.loop
    assert loop is not None
    return loop.drive(strand, coro)


def drives(strand: Strand) -> None:
    """Say that the task that runs just now drives this strand."""
    task = asyncio.current_task()
    if task is not None:
        setattr(task, _STRAND, strand)


def _ended_by(future: object) -> Strand | None:
    """Return the strand of a task, or the call of a thread, whose end a future tells."""
    if future.__class__ is Task:
        return getattr(future, _STRAND, None)
    if future.__class__ is Future:
        told = getattr(future, _READY, None)
        if told.__class__ is Run:
            return told
    return None
