"""aiohttp's client, against a peer that stamps when it was asked and when it replied."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.peer import http, serving
from tests.integration.recorded import JIFFY, LOOPS, MS, Recorded, Run, hooked, record
from timesplit.instrumentation import upstream
from timesplit.instrumentation.agent import Agent
from timesplit.instrumentation.layout import span_id
from timesplit.instrumentation.loop import clock

aiohttp: Any = pytest.importorskip("aiohttp")  # none of ours: where it is installed, it is tested

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    return LOOPS[request.param]


@pytest.fixture(autouse=True)
def armed() -> Iterator[Agent]:
    agent = Agent()
    upstream.arm_aiohttp(agent)
    assert [hook for hook in agent.hooks.found.values() if not hook.armed] == []
    yield agent
    agent.disarm()


async def get(session: Any, port: int, **options: Any) -> None:
    async with session.get(f"http://127.0.0.1:{port}/path?token=secret", **options) as response:
        assert await response.text() == "hello"


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_a_call_lasts_from_the_question_to_the_end_of_the_body(run: Run, chunked: bool) -> None:
    async def work() -> None:
        async with aiohttp.ClientSession() as session:
            await get(session, peer.port)
            await get(session, peer.port)

    with serving(http(0.02, 0.03, chunked)) as peer:
        request = Recorded(traceparent=PARENT.encode(), number=3)
        account = run(hooked(record(work, request)))
    assert account.result is None
    for asked, replied in zip(peer.asked, peer.replied, strict=True):
        account.is_all("upstream", asked, replied, within=JIFFY)
    assert set(account.labels("upstream")) == {f"GET 127.0.0.1:{peer.port}"}
    assert set(account.labels("upstream_wait")) <= {"connect"}
    assert account.upstream_count == 2
    child = f"traceparent: 00-{TRACE}-{span_id(request.journal.instance, 3):016x}-01".encode()
    assert all(head.lower().count(child) == 1 for head in peer.heads)


def test_waiting_for_a_connection_is_not_the_call(run: Run) -> None:
    async def main() -> list[Recorded]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            work = lambda: get(session, peer.port)  # noqa: E731  # used twice
            return list(await asyncio.gather(record(work), record(work)))

    with serving(http(0.05)) as peer:
        first, second = sorted(run(hooked(main())), key=lambda account: account.ended)
    second.is_all("upstream_wait", peer.asked[0], peer.replied[0], within=3)
    second.is_all("upstream", peer.asked[1], peer.replied[1], within=JIFFY)
    assert second.labels("upstream_wait")[0] == "pool"
    assert first.ms("upstream_wait", "pool") < 3


def test_a_trace_of_the_applications_own_is_left_alone(run: Run) -> None:
    own = {"TraceParent": "00-11111111111111111111111111111111-2222222222222222-01"}

    async def work() -> None:
        async with aiohttp.ClientSession(headers=own) as session:
            await get(session, peer.port)
        async with aiohttp.ClientSession() as session:
            await get(session, peer.port, headers=own)

    with serving(http()) as peer:
        assert run(hooked(record(work, Recorded(traceparent=PARENT.encode())))).result is None
    for head in peer.heads:
        assert head.lower().count(b"traceparent") == 1
        assert b"2222222222222222" in head


def test_a_reply_that_a_busy_loop_reads_late_is_a_wait_for_the_loop(run: Run) -> None:
    async def main() -> tuple[Recorded, int, int]:
        ready = asyncio.Event()

        async def block() -> tuple[int, int]:
            await ready.wait()
            await asyncio.sleep(0.008)
            start = clock()
            time.sleep(0.2)  # noqa: ASYNC251  # the mistake that is measured
            return start, clock()

        async with aiohttp.ClientSession() as session:

            async def work() -> None:
                await get(session, peer.port)
                ready.set()
                await get(session, peer.port)

            other = asyncio.create_task(block())
            return await record(work), *await other

    with serving(http(0.02)) as peer:
        account, start, end = run(hooked(main()))
    came = peer.replied[1]
    assert start < came < end
    assert account.between(came, end)["loop"] == pytest.approx((end - came) / MS, abs=5)
    assert account.between(start, came)["upstream"] == pytest.approx((came - start) / MS, abs=5)
