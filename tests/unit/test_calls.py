"""Calls that hooks charge: entered and left by whoever makes them, whatever happens inside."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from timesplit.instrumentation.agent import Agent
from timesplit.instrumentation.calls import ANY_NAMED, Call, awaited, blocking, connected, hook, labelled
from timesplit.instrumentation.ledger import OFFLOAD_RUN, OTHER_WAIT, Run, Strand
from timesplit.instrumentation.loop import here
from timesplit.parts import CODES

QUERY, CONNECT, POOL_WAIT = (CODES[name] for name in ("query", "db_connect", "pool_wait"))
QUERIES = Call(QUERY, lambda request, statement, **_: str(statement), ANY_NAMED - {POOL_WAIT})


class Request:
    def __init__(self) -> None:
        self.failures = 0
        self.journal = self

    def failed(self) -> None:
        self.failures += 1


@pytest.fixture
def request_() -> Request:
    return Request()


@pytest.fixture
def strand(request_: Request, monkeypatch: pytest.MonkeyPatch) -> Strand:
    """The strand in whose step we are."""
    strand = Strand(1, request=request_)
    monkeypatch.setattr(here, "loop", SimpleNamespace(strand=strand))
    return strand


@pytest.fixture
def thread(request_: Request) -> Iterator[Run]:
    """The call that this thread makes for a request."""
    here.run = Run(1, Strand(1, request=request_), OFFLOAD_RUN, "job")
    yield here.run
    here.run = None


def seen(worker: Strand) -> tuple[int, str]:
    return worker.part, worker.label


def test_a_call_is_what_its_strand_does_while_it_lasts(strand: Strand) -> None:
    inside = blocking(lambda statement: seen(strand), QUERIES)("SELECT a")

    assert inside == (QUERY, "SELECT a")
    assert seen(strand) == (OTHER_WAIT, "")


def test_an_awaited_call_too_and_it_stays_a_coroutine_function(strand: Strand) -> None:
    async def execute(statement: str) -> tuple[int, str]:
        return seen(strand)

    stand_in = awaited(execute, QUERIES)

    assert asyncio.iscoroutinefunction(stand_in)
    assert asyncio.run(stand_in("SELECT a")) == (QUERY, "SELECT a")
    assert seen(strand) == (OTHER_WAIT, "")


def test_a_piece_of_a_call_adds_nothing(strand: Strand) -> None:
    strand.part, strand.label = CONNECT, "ping"

    assert blocking(lambda statement: seen(strand), QUERIES)("SELECT 1") == (CONNECT, "ping")


def test_a_connections_call_says_what_is_waited_for_even_inside_another(strand: Strand) -> None:
    async def query(connection: object) -> tuple[object, int]:
        return strand.source, strand.part

    strand.part = CONNECT
    connection = object()

    assert asyncio.run(connected(query, QUERIES)(connection)) == (connection, CONNECT)
    assert strand.source is None


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, KeyboardInterrupt])
def test_a_call_that_raises_is_over(strand: Strand, error: type[BaseException]) -> None:
    def fail(statement: str) -> None:
        raise error("mine")

    with pytest.raises(error, match="mine"):
        blocking(fail, QUERIES)("SELECT a")
    assert seen(strand) == (OTHER_WAIT, "")


def test_an_error_of_ours_is_counted_and_the_call_is_made_once(strand: Strand, request_: Request) -> None:
    calls: list[Any] = []
    broken = Call(QUERY, lambda request, statement: statement.nonsense, ANY_NAMED)

    blocking(calls.append, broken)("SELECT a")

    assert calls == ["SELECT a"]
    assert request_.failures == 1
    assert seen(strand) == (OTHER_WAIT, "")


def test_a_threads_call_is_charged_all_its_time(thread: Run) -> None:
    def execute(statement: str) -> tuple[int, str]:
        return seen(thread)

    assert blocking(execute, QUERIES)("SELECT a") == (QUERY, "SELECT a")
    assert seen(thread) == (OFFLOAD_RUN, "job")
    assert [(wait.part, wait.label) for wait in thread.waits] == [(OFFLOAD_RUN, "job"), (QUERY, "SELECT a")]


@pytest.mark.parametrize("over", [False, True])
def test_without_a_request_nothing_happens(strand: Strand, over: bool) -> None:
    if over:
        strand.request = None  # its record is written
    else:
        here.loop.strand = None  # type: ignore[union-attr]  # set by the fixture

    assert blocking(lambda statement: seen(strand), QUERIES)("SELECT a") == (OTHER_WAIT, "")


def test_what_a_library_has_not_is_left_out_and_said(strand: Strand) -> None:
    agent = Agent()
    place = f"{__name__}:Request"
    hook(agent, place, "nothing", lambda original: original)
    hook(agent, f"{__name__}:Nobody", "failed", lambda original: original)
    hook(agent, "no_such_module", "failed", lambda original: original)
    hook(agent, place, "failed", lambda original: blocking(original, Call(QUERY, labelled(""), ANY_NAMED)))

    armed = {name: found.armed for name, found in agent.hooks.found.items()}
    assert list(armed.values()) == [False, False, False, True]
    assert hasattr(Request.failed, "__wrapped__")
    agent.disarm()
    assert not hasattr(Request.failed, "__wrapped__")
