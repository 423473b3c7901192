"""Calls that a request hands to worker threads: how long they wait for a thread, and what they do in it.

anyio's threads (sync routes, dependencies, files) all pass one method; what `run_in_executor` and `to_thread` hand on
passes `ThreadPoolExecutor.submit`. A call's token and thread are `offload_wait`, the call itself `offload_run` but for
what it waits for in its turn, and from its end on the request waits for its loop. A token that a finished call still
holds, because a busy loop cannot resume its request, keeps others from nothing but that loop: their wait is `loop` too.

A call in another process is an `other_wait` with its name: no worker thread runs it, and nothing of it is seen here.
"""

import contextvars
import functools
import importlib
from collections.abc import Callable
from functools import lru_cache
from types import FunctionType, TracebackType
from typing import TYPE_CHECKING, Any

from timesplit.instrumentation.calls import (
    ANY_NAMED,
    UNNAMED,
    Call,
    Sync,
    awaited,
    charged,
    enter,
    failed,
    hook,
    leave,
    turn,
    working,
)
from timesplit.instrumentation.ledger import OFFLOAD_RUN, OFFLOAD_WAIT, OTHER_WAIT, Run, Strand
from timesplit.instrumentation.loop import clock, here

if TYPE_CHECKING:
    from timesplit.instrumentation.agent import Agent


def arm_anyio(agent: "Agent") -> None:
    """Arm anyio's worker threads."""
    backend = "anyio._backends._asyncio"
    importlib.import_module(backend)  # anyio does so at the first call only
    hook(agent, f"{backend}:AsyncIOBackend", "run_sync_in_worker_thread", _offloaded)
    hook(agent, f"{backend}:CapacityLimiter", "release_on_behalf_of", _released)


def arm_anyio_processes(agent: "Agent") -> None:
    """Arm anyio's worker processes."""
    call = Call(OTHER_WAIT, _about_process, ANY_NAMED)
    hook(agent, "anyio.to_process", "run_sync", charged(awaited, call))


def arm_threads(agent: "Agent") -> None:
    """Arm the thread pools of the standard library."""
    pools = "concurrent.futures.thread"
    importlib.import_module(pools)  # `concurrent.futures` does so at the first use only
    hook(agent, f"{pools}:ThreadPoolExecutor", "submit", _to_thread)


def arm_processes(agent: "Agent") -> None:
    """Arm the process pools of the standard library."""
    hook(agent, "concurrent.futures.process:ProcessPoolExecutor", "submit", _to_process)


def arm_fastapi(agent: "Agent") -> None:
    """Arm the semaphores that bound how many requests are in a dependency at once."""
    hook(agent, "fastapi.concurrency:_DependencyConcurrency", "get_semaphore", _bounded)


def name_of(function: Any, arguments: tuple[Any, ...] = ()) -> str:
    """Return a short name of what is called, without what it is called with."""
    while function.__class__ is functools.partial:
        inner = function.keywords.get("function")  # FastAPI: an endpoint, in a call that traces it
        if callable(inner):
            function, arguments = inner, ()
            continue
        function, arguments = function.func, (*function.args, *arguments)
        if isinstance(getattr(function, "__self__", None), contextvars.Context):  # asyncio.to_thread
            function, arguments = arguments[0], arguments[1:]
    if function.__class__ is not FunctionType:
        # A dependency with `yield` is entered and left by its context manager's methods.
        function = getattr(getattr(function, "__self__", None), "func", function)
    name = getattr(function, "__name__", None) or type(function).__name__
    if name == "_next" and arguments:  # Starlette: the next piece of a sync iterator
        return getattr(arguments[0], "__name__", None) or type(arguments[0]).__name__
    return _short(getattr(function, "__module__", None), name)


@lru_cache(maxsize=1024)
def _short(module: str | None, name: str) -> str:
    return f"{module.rpartition('.')[2]}.{name}" if module else name


def _offloaded(original: Any) -> Any:
    method = getattr(original, "__func__", None)

    async def run_sync_in_worker_thread(
        cls: Any, func: Sync, args: tuple[Any, ...], *rest: Any, **options: Any
    ) -> Any:
        strand = here.strand
        call = original if method is None else functools.partial(method, cls)
        if strand is None or strand.request is None or strand.part not in UNNAMED:
            return await call(func, args, *rest, **options)
        run = _handed_on(OFFLOAD_WAIT, "", func, args)
        if run is None:
            return await call(func, args, *rest, **options)
        before = strand.part, strand.label
        strand.part, strand.label = OFFLOAD_WAIT, run.label
        try:
            return await call(_in_thread, (run, func, args), *rest, **options)
        finally:
            strand.part, strand.label = before
            if not run.ended:
                _left(strand, run)

    return classmethod(run_sync_in_worker_thread)


def _in_thread(
    run: Run, function: Sync, arguments: tuple[Any, ...], options: dict[str, Any] | None = None
) -> Any:
    """Make a request's call, in a worker thread."""
    outer, here.run, here.over = here.run, run, None
    turn(run, OFFLOAD_RUN, run.label)
    try:
        return function(*arguments, **options) if options else function(*arguments)
    finally:
        _ended(run)
        here.run, here.over = outer, run


def _ended(run: Run) -> None:
    try:
        run.end(clock())
    except Exception:
        failed(run)


def _left(strand: Strand, run: Run) -> None:
    """Its request gave a call up: what the call did until then is still what the request waited for."""
    last = strand.waits[-1] if strand.waits else None
    if last is not None and last.part == OFFLOAD_WAIT and last.waker is None:
        strand.waits[-1] = last._replace(waker=run)


def _released(original: Sync) -> Sync:
    def release_on_behalf_of(self: Any, borrower: object) -> Any:
        strand = here.strand
        if strand is None:
            return original(self, borrower)
        last = strand.waits[-1].waker if strand.waits else None
        strand.freed = last.ended if last.__class__ is Run else 0
        try:
            return original(self, borrower)
        finally:
            strand.freed = 0

    return release_on_behalf_of


def _handed_on(part: int, prefix: str, function: Sync, arguments: tuple[Any, ...]) -> Run | None:
    """Return the account of a call that an executor is given; None where there is nothing to keep."""
    worker = working()
    if worker is None or worker.request is None or worker.part not in UNNAMED:
        return None
    try:
        return Run(clock(), worker, part, prefix + name_of(function, arguments))
    except Exception:  # of a callable that does not even tell its name
        failed(worker)
        return None


def _to_thread(original: Sync) -> Sync:
    def submit(self: Any, fn: Sync, /, *args: Any, **kwargs: Any) -> Any:
        run = _handed_on(OFFLOAD_WAIT, "", fn, args)
        if run is None:
            return original(self, fn, *args, **kwargs)
        return original(self, _in_thread, run, fn, args, kwargs)

    return submit


def _to_process(original: Sync) -> Sync:
    def submit(self: Any, fn: Sync, /, *args: Any, **kwargs: Any) -> Any:
        future = original(self, fn, *args, **kwargs)
        run = _handed_on(OTHER_WAIT, "process ", fn, args)
        if run is not None:
            # The first callback: the loop is told by a later one, from the same thread.
            future.add_done_callback(functools.partial(_returned, run))
        return future

    return submit


def _returned(run: Run, future: object) -> None:
    _ended(run)
    here.over = run


def _about_process(request: object, function: Sync, *arguments: Any, **__: Any) -> str:
    return f"process {name_of(function, arguments)}"


def _bounded(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def get_semaphore(self: Any) -> Any:
        return _Bound(original(self), getattr(self, "max_concurrency", ""))

    return get_semaphore


class _Bound:
    """A dependency's semaphore; waiting for it has a name."""

    __slots__ = ("_limit", "_semaphore")

    def __init__(self, semaphore: Any, limit: object) -> None:
        self._semaphore = semaphore
        self._limit = limit

    async def __aenter__(self) -> Any:
        before = enter(_DEPENDENCY, (self._limit,))
        try:
            return await self._semaphore.__aenter__()
        finally:
            if before is not None:
                leave(before)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        return await self._semaphore.__aexit__(kind, error, trace)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._semaphore, name)


_DEPENDENCY = Call(OTHER_WAIT, lambda request, limit: f"dependency concurrency {limit}", ANY_NAMED)
