"""Strands of real tasks on real loops: what the hooks see, on asyncio and uvloop."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from tests.integration.peer import Peer, reply, serving
from tests.integration.recorded import Recorded, hooked, record
from timesplit.instrumentation.ledger import Strand, split
from timesplit.instrumentation.loop import LoopHooks, clock, drive, drives, here
from timesplit.parts import CODES

NAMES = {code: name for name, code in CODES.items()}
MS = 1_000_000
Work = Callable[[], Coroutine[Any, Any, Any]]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """The loop to run on."""
    return request.param  # type: ignore[no-any-return]  # pytest's params are untyped


async def account(work: Work, beside: Awaitable[object] | None = None) -> tuple[dict[str, float], int]:
    """Run a request and return its parts in ms, and its length in ns; `beside` runs as somebody else's task."""
    hooks = LoopHooks(asyncio.get_running_loop())
    hooks.arm()
    strand = Strand(clock(), request=object())

    async def request() -> None:
        drives(strand)
        await drive(strand, work())

    other = asyncio.ensure_future(beside) if beside is not None else None
    try:
        await asyncio.get_running_loop().create_task(request())
    finally:
        if other is not None:
            await other
        hooks.disarm()
    segments = split(strand, strand.began, strand.ended)
    total: Counter[str] = Counter()
    for segment in segments:
        total[NAMES[segment.part]] += segment.end - segment.start
    assert sum(total.values()) == strand.ended - strand.began
    return {part: ns / MS for part, ns in total.items()}, strand.ended - strand.began


async def block(after: float, ms: int) -> tuple[int, int]:
    """Block the loop, and return from when to when."""
    await asyncio.sleep(after)
    start = clock()
    time.sleep(ms / 1000)  # noqa: ASYNC251  # the mistake that is measured
    return start, clock()


def test_a_sleep_is_a_wait_up_to_when_it_was_due(run: Any) -> None:
    async def work() -> None:
        await asyncio.sleep(0.03)

    async def main() -> dict[str, float]:
        parts, _ = await account(work, block(0.01, 90))
        return parts

    parts = run(main())
    assert parts["other_wait"] == pytest.approx(30, abs=4)
    assert parts["loop"] == pytest.approx(70, abs=6)


def test_the_return_from_a_thread_is_a_wait_for_the_loop(run: Any) -> None:
    ended: list[int] = []

    def job() -> None:
        time.sleep(0.03)
        ended.append(clock())

    async def work() -> None:
        await asyncio.to_thread(job)
        ended.append(clock())

    async def main() -> dict[str, float]:
        parts, _ = await account(work, block(0.01, 90))
        return parts

    parts = run(main())
    assert parts["loop"] == pytest.approx((ended[1] - ended[0]) / MS, abs=3)


@pytest.mark.parametrize("group", ["gather", "task group", "one task"])
def test_the_last_child_counts(run: Any, group: str) -> None:
    async def child(name: str, seconds: float) -> None:
        assert here.strand is not None
        here.strand.part = CODES[name]
        await asyncio.sleep(seconds)
        here.strand.part = CODES["other_wait"]

    async def work() -> None:
        if group == "gather":
            await asyncio.gather(child("cache", 0.01), child("upstream", 0.05), child("query", 0.03))
        elif group == "task group":
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(child("cache", 0.01))
                tasks.create_task(child("upstream", 0.05))
        else:
            await asyncio.create_task(child("upstream", 0.05))

    parts, total = run(account(work))
    assert set(parts) <= {"upstream", "route", "loop", "other_wait"}
    # Of the others' sleeps what they were late is a wait for the loop: they were ready then.
    assert parts["upstream"] + parts.get("loop", 0) + parts["route"] == pytest.approx(total / MS, abs=1)
    assert parts["upstream"] > 40
    assert total / MS == pytest.approx(50, abs=10)


def test_a_task_that_nobody_waits_for_does_not_count(run: Any) -> None:
    left: set[asyncio.Task[None]] = set()

    async def forgotten() -> None:
        time.sleep(0.02)  # noqa: ASYNC251  # the mistake that is measured

    async def work() -> None:
        task = asyncio.create_task(forgotten())
        left.add(task)
        task.add_done_callback(left.discard)
        await asyncio.sleep(0.06)

    parts, _ = run(account(work))
    assert parts["other_wait"] == pytest.approx(60, abs=4)
    assert parts.get("route", 0) < 10


def test_cancellation_and_errors_pass_through(run: Any) -> None:
    seen = []

    async def work() -> None:
        try:
            await asyncio.wait_for(asyncio.sleep(1), 0.01)
        except TimeoutError as error:
            seen.append(error)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run(account(work))
    assert len(seen) == 1


def test_the_hooks_are_gone_after_disarm(run: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = (loop.call_soon, loop.get_task_factory())
        hooks = LoopHooks(loop)
        hooks.arm()
        hooks.disarm()
        assert (loop.call_soon, loop.get_task_factory()) == before

    run(main())


def test_two_loops_in_two_threads_keep_apart(run: Any) -> None:
    async def work() -> None:
        for _ in range(20):
            await asyncio.sleep(0.001)
            assert here.strand is not None

    found: list[dict[str, float]] = []
    threads = [threading.Thread(target=lambda: found.append(run(account(work))[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2


def test_from_a_tasks_end_on_its_waiter_waits_for_the_loop(run: Any) -> None:
    stamps: list[int] = []

    async def child() -> None:
        await asyncio.sleep(0.01)
        # Before the child's waiter is told, somebody else's callback blocks the loop.
        asyncio.get_running_loop().call_soon(time.sleep, 0.05)
        stamps.append(clock())

    async def work() -> None:
        await asyncio.gather(child())
        stamps.append(clock())

    parts, _ = run(account(work))
    assert parts["loop"] == pytest.approx((stamps[1] - stamps[0]) / MS, abs=1)
    assert parts["other_wait"] == pytest.approx(10, abs=4)


def test_a_bare_yield_waits_for_nothing_but_the_loop(run: Any) -> None:
    async def work() -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    parts, _ = run(account(work))
    assert set(parts) <= {"route", "loop"}


def test_where_nobody_can_tell_when_a_reply_came_that_is_uncertain(run: Any) -> None:
    request = Recorded()
    blocked: list[int] = []

    async def block() -> None:
        await asyncio.sleep(0.01)
        blocked.append(clock())
        time.sleep(0.1)  # noqa: ASYNC251  # the mistake that is measured
        blocked.append(clock())

    async def work() -> None:
        assert here.strand is not None
        here.strand.part = CODES["db_connect"]
        reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
        writer.write(b"/0.03")
        await reader.read(1)
        here.strand.part = CODES["other_wait"]
        writer.close()

    def answer(peer: Peer, connection: Any, _: bytes) -> None:
        time.sleep(0.03)
        reply(peer, connection, b"!")

    with serving(answer) as peer:
        run(hooked(record(work, request), block()))
    assert blocked[0] < peer.replied[0] < blocked[1]
    assert request.uncertain / MS == pytest.approx((blocked[1] - blocked[0]) / MS, abs=3)
