"""Steps, readiness and child tasks, on asyncio and uvloop alike.

A strand's coroutine is driven by `drive`, which stamps each step. When what a suspended task waits for has come,
the loop is asked to call the task soon: `call_soon`, replaced on the loop instance, stamps that. Both are all that
a loop without a hook of its own (uvloop) lets us see, and all that is needed.
"""

import asyncio
import threading
import time
from asyncio import AbstractEventLoop, Future, Handle, Task, TimerHandle
from collections.abc import Callable, Coroutine, Generator
from types import BuiltinFunctionType, coroutine
from typing import Any

from timesplit.instrumentation.ledger import Run, Strand
from timesplit.instrumentation.readiness import came

clock = time.monotonic_ns
LONG_STEP = 1_000_000  # ns; steps from this length on are recorded one by one


class Here(threading.local):
    """What this thread runs just now.

    Attributes:
        strand: on a loop's thread, the strand in whose step we are.
        run: in a worker thread, the request's call that it makes.
        over: in a worker thread, that call, from its end until the loop is told.
        long_step: told of steps of LONG_STEP and more: (strand, start, end).
        busy_from, busy_to: on a loop's thread, the last stretch of such steps with little between them.
    """

    strand: Strand | None = None
    run: Run | None = None
    over: Run | None = None
    long_step: Callable[[Strand, int, int], None] | None = None
    busy_from = busy_to = 0


here = Here()


@coroutine
def drive(strand: Strand, coro: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Run a coroutine to its end, telling its strand of each step; everything else passes through unchanged."""
    value: Any = None
    error: BaseException | None = None
    while True:
        start = clock()
        strand.step(start)
        outer, here.strand = here.strand, strand
        try:
            awaited = coro.send(value) if error is None else coro.throw(error)
        except BaseException as end:
            _ended(strand, outer, start)
            if isinstance(end, StopIteration):
                return end.value
            raise
        error = None  # keeps no traceback alive while suspended
        now = clock()
        here.strand = outer
        strand.suspend(now)
        if now - start >= LONG_STEP:
            _long(strand, start, now)
        try:
            value = yield awaited
        except BaseException as thrown:  # cancellation and close() go to the coroutine, as without us
            error = thrown


def _ended(strand: Strand, outer: Strand | None, start: int) -> None:
    now = clock()
    here.strand = outer
    strand.end(now)
    if now - start >= LONG_STEP:
        _long(strand, start, now)


def _long(strand: Strand, start: int, end: int) -> None:
    if start - here.busy_to > LONG_STEP:
        here.busy_from = start
    here.busy_to = end
    if here.long_step is not None:
        here.long_step(strand, start, end)


def current_request() -> Any:
    """Return the request for which this thread works just now, or None."""
    worker = here.strand or here.run
    return None if worker is None else worker.request


_STRAND = "_timesplit_strand"  # attribute of a task: the strand that it drives
_READY = "_timesplit_ready"  # attribute of a future: when a thread asked for it to be set, or the call that it made


class LoopHooks:
    """The hooks of one event loop, set on the instance: uvloop's class cannot be changed."""

    def __init__(self, loop: AbstractEventLoop) -> None:
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

    def disarm(self) -> None:
        """Take the hooks back, but for those that somebody else has replaced since."""
        for name in self._names:
            if getattr(self._loop, name, None) == getattr(self, name):
                delattr(self._loop, name)
        if self._loop.get_task_factory() == self.make_task:
            self._loop.set_task_factory(self._factory)

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Handle:
        """Stamp the task that becomes ready, then do what the loop does."""
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
                return self._call_soon(self._finish, ended, callback, *args, context=context)
        return self._call_soon(callback, *args, context=context)

    def _wake(self, strand: Strand, args: tuple[Any, ...]) -> None:
        now = clock()
        waker = here.strand or self._finishing
        if args:
            ended = _ended_by(args[0])
            if ended is not None:
                ended.awaited = True
                waker = waker or ended
            elif waker is None:
                now = getattr(args[0], _READY, now)
        if waker is None:
            if strand.source is not None:
                now = came(strand, now, here.busy_from, here.busy_to)
        elif waker.__class__ is Run:
            now = waker.ended or now
        elif waker.freed:
            now = waker.freed
        strand.wake(now, waker)

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
        due = clock() + int(delay * 1e9)
        return _timed(due, self._call_later(delay, callback, *args, context=context))

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> TimerHandle:
        """Note when the timer is due, as `call_later` does."""
        due = clock() + int((when - self._loop.time()) * 1e9)
        return _timed(due, self._call_at(when, callback, *args, context=context))

    def make_task(self, loop: AbstractEventLoop, coro: Any, **options: Any) -> Any:
        """Make a task; in a request's step, one whose steps are the request's too."""
        creator = here.strand
        strand = None
        if creator is not None and creator.request is not None:
            strand = Strand(clock(), creator)
            coro = _child(strand, coro)
        task = self._factory(loop, coro, **options) if self._factory else Task(coro, loop=loop, **options)
        if strand is not None:
            setattr(task, _STRAND, strand)
        return task


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


def _timed(due: int, handle: TimerHandle) -> TimerHandle:
    strand = here.strand
    if strand is not None and (strand.due is None or due < strand.due[0]):
        strand.due = (due, handle)
    return handle


def _child(strand: Strand, coro: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    async def child() -> Any:
        return await drive(strand, coro)

    child.__name__ = getattr(coro, "__name__", "child")
    child.__qualname__ = getattr(coro, "__qualname__", "child")
    return child()
