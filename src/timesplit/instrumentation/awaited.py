"""The name of what a coroutine waits for: `sleep`, `Lock.acquire`, `Queue.get`, `Client.publish`.

Found only when a wait has been long, by following the chain of awaits inwards: the name is that of the call which
the application's innermost coroutine awaits.
"""

import gc
from asyncio import Future, Task
from collections.abc import Iterator
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final

from timesplit.instrumentation.places import is_application, short

_DEEP: Final = 100  # coroutines; deeper chains are cut: a bound on the work
_INNER: Final = ("cr_await", "gi_yieldfrom", "ag_await")
_FOLLOWED: Final = (CoroutineType, GeneratorType, AsyncGeneratorType, Future)


def name_of_wait(coro: Any) -> str:
    """Return what a suspended coroutine waits for; empty where that cannot be told. Never raises."""
    try:
        return _name(list(_chain(coro)))
    except Exception:  # objects of libraries may raise anything when asked for an attribute
        return ""


def _name(chain: list[Any]) -> str:
    """Return the name of the first call below the application's innermost coroutine."""
    own = [index for index, link in enumerate(chain) if _is_application(link)]
    below = chain[own[-1] + 1 :] if own else chain[-2:]
    named = [link for link in below if not isinstance(link, Future)]
    if named:
        return short(str(getattr(named[0 if own else -1], "__qualname__", "")))
    return _name_of_future(below[0]) if below else ""


def _name_of_future(future: Any) -> str:
    if isinstance(future, Task):
        return "task"
    return "gather" if type(future).__name__ == "_GatheringFuture" else "future"


def _chain(awaited: Any) -> Iterator[Any]:
    """Yield a coroutine, what it awaits, what that awaits, and so on."""
    for _ in range(_DEEP):
        if awaited is None:
            return
        if isinstance(awaited, Future):
            yield awaited
            return
        inner = next((name for name in _INNER if hasattr(awaited, name)), None)
        if inner is not None:
            yield awaited
            awaited = getattr(awaited, inner)
        else:  # an iterator around a future, a coroutine or a generator, that does not say of which
            awaited = next((held for held in gc.get_referents(awaited) if isinstance(held, _FOLLOWED)), None)


def _is_application(link: Any) -> bool:
    for name in ("cr_code", "gi_code", "ag_code"):
        code = getattr(link, name, None)
        if code is not None:
            return is_application(code.co_filename)
    return False
