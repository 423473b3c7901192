"""Calls that a request makes of others: what it does while they last, whichever library makes them.

A hook enters a call and leaves it. On a loop the time in which that suspends the strand is charged to the call's part;
in a worker thread all of it; a call that blocks the loop itself stays `route`, since running beats waiting. Calls nest
(a pool opens a connection, a framework calls a driver): each hook says inside which parts it has nothing to add.
"""

import functools
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from timesplit.instrumentation.ledger import OFFLOAD_RUN, OTHER_WAIT, Run, Strand
from timesplit.instrumentation.loop import clock, here
from timesplit.parts import CODES

if TYPE_CHECKING:
    from timesplit.instrumentation.agent import Agent

Parts = frozenset[int]
# Tells a call's label, given its arguments, and counts it: (request, arguments of the call) → label.
About = Callable[..., str]
Sync = Callable[..., Any]
Async = Callable[..., Coroutine[Any, Any, Any]]

Way = Callable[[Any, "Call"], Any]
Arguments = tuple[Any, ...]
Options = Mapping[str, Any]

NO_OPTIONS: Options = {}
UNNAMED: Parts = frozenset((OTHER_WAIT, OFFLOAD_RUN))
ANY_NAMED: Parts = frozenset(CODES.values()) - UNNAMED


class Call(NamedTuple):
    """What calls of a kind are charged to.

    Attributes:
        part: code of the part.
        about: label and count of a call.
        within: parts inside which such a call is a piece of what is named already.
    """

    part: int
    about: About
    within: Parts


# Where to go back to when a call is over: who made it, and what that did before.
Entered = tuple[Strand, int, str]


def working() -> Strand | None:
    """Return the strand in whose step this thread is, or the call that it makes for a request."""
    loop = here.loop
    return here.run if loop is None else loop.strand


def labelled(label: str) -> About:
    """Return what gives all calls of a kind one label."""
    return lambda *_, **__: label


def enter(call: Call, args: Arguments, kwargs: Options = NO_OPTIONS) -> Entered | None:
    """Begin a call that is made with these arguments. Never raises.

    Returns:
        What `leave` needs, or None where there is nothing to leave.
    """
    loop = here.loop
    worker = here.run if loop is None else loop.strand
    if worker is None or worker.request is None or worker.part in call.within:
        return None
    before = (worker, worker.part, worker.label)
    try:
        turn(worker, call.part, call.about(worker.request, *args, **kwargs))
    except Exception:
        failed(worker)
        return None
    return before


def leave(before: Entered) -> None:
    """End a call: the time goes to what was there before."""
    worker, part, label = before
    worker.source = None
    turn(worker, part, label)


def turn(worker: Strand, part: int, label: str) -> None:
    """Say what a strand or a thread's call does from now on. Never raises."""
    if worker.__class__ is not Run:
        worker.part = part
        worker.label = label
        return
    try:
        worker.change(clock(), part, label)
    except Exception:
        failed(worker)


def failed(worker: Strand) -> None:
    """Count an error of ours; the user's call goes on."""
    request: Any = worker.request
    if request is not None:
        request.journal.failed()


def blocking(original: Sync, call: Call) -> Sync:
    """Return a function's stand-in that charges its time.

    Right too for what runs inside a greenlet and is suspended there: it is the same strand that goes on.
    """

    @functools.wraps(original)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        before = enter(call, args, kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            if before is not None:
                leave(before)

    return stand_in


def awaited(original: Async, call: Call) -> Async:
    """Return a coroutine function's stand-in that charges its time.

    A coroutine function too: what it returns may be made a task.
    """

    @functools.wraps(original)
    async def stand_in(*args: Any, **kwargs: Any) -> Any:
        before = enter(call, args, kwargs)
        try:
            return await original(*args, **kwargs)
        finally:
            if before is not None:
                leave(before)

    return stand_in


def connected(original: Async, call: Call) -> Async:
    """Return the stand-in of a connection's coroutine method: as `awaited`, and the connection is what is waited for.

    Also inside a call that is named already: only here is it known which connection that waits for.
    """

    @functools.wraps(original)
    async def stand_in(connection: Any, *args: Any, **kwargs: Any) -> Any:
        loop = here.loop
        strand = None if loop is None else loop.strand
        if strand is None:
            return await original(connection, *args, **kwargs)
        before = enter(call, (connection, *args), kwargs)
        source, strand.source = strand.source, connection
        try:
            return await original(connection, *args, **kwargs)
        finally:
            strand.source = source
            if before is not None:
                leave(before)

    return stand_in


def charged(way: Way, call: Call) -> Callable[[Any], Any]:
    """Return what makes stand-ins of functions in one of these ways."""
    return lambda original: way(original, call)


def hook(agent: "Agent", place: str, attribute: str, make: Callable[[Any], Any]) -> None:
    """Replace an attribute, if it is there: libraries differ from version to version.

    Args:
        agent: has the hooks.
        place: `module:Class`, or `module`; of a package that is imported.
        attribute: of the class or module.
        make: takes the original, returns what stands in for it.
    """
    module, _, name = place.partition(":")
    package, *folders = module.split(".")
    kind = " async" if {"asyncio", "_async"} & set(folders) else ""
    called = f"{package}{kind} {name or module.rpartition('.')[2]}.{attribute}"
    owner = sys.modules.get(module)
    if name and owner is not None:
        owner = getattr(owner, name, None)
    if owner is None:
        agent.hooks.leave(called, f"there is no {place}")
    else:
        agent.hooks.replace(called, owner, attribute, make)
