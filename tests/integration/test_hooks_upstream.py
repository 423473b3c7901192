"""Calls of other services by httpx and requests, against a peer that stamps when it was asked and when it replied."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import httpcore
import httpx
import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter

from tests.integration.peer import http, serving
from tests.integration.recorded import LOOPS, MS, Recorded, Run, Work, hooked, record
from timesplit.instrumentation import offload, upstream
from timesplit.instrumentation.agent import Agent
from timesplit.instrumentation.layout import span_id
from timesplit.instrumentation.loop import clock

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    return LOOPS[request.param]


@pytest.fixture(autouse=True)
def armed() -> Iterator[Agent]:
    agent = Agent()
    offload.arm_anyio(agent)
    upstream.arm_httpcore(agent)
    upstream.arm_urllib3(agent)
    assert [hook for hook in agent.hooks.found.values() if not hook.armed] == []
    yield agent
    agent.disarm()


async def get_httpx(port: int) -> None:
    async with httpx.AsyncClient() as client:
        for _ in range(2):
            assert (await client.get(f"http://127.0.0.1:{port}/path?token=secret")).text == "hello"


async def get_httpx_in_thread(port: int) -> None:
    def job() -> None:
        with httpx.Client() as client:
            for _ in range(2):
                assert client.get(f"http://127.0.0.1:{port}/path?token=secret").text == "hello"

    await anyio.to_thread.run_sync(job)


async def get_requests(port: int) -> None:
    def job() -> None:
        with requests.Session() as session:
            for _ in range(2):
                assert session.get(f"http://127.0.0.1:{port}/path?token=secret").text == "hello"

    await anyio.to_thread.run_sync(job)


async def get_requests_streamed(port: int) -> None:
    def job() -> None:
        for _ in range(2):
            with requests.get(f"http://127.0.0.1:{port}/path?token=secret", stream=True) as response:
                assert b"".join(response.iter_content(2)) == b"hello"

    await anyio.to_thread.run_sync(job)


Get = Callable[[int], Coroutine[Any, Any, None]]
WAYS: list[Get] = [get_httpx, get_httpx_in_thread, get_requests, get_requests_streamed]


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("get", WAYS)
def test_a_call_lasts_from_the_question_to_the_end_of_the_body(run: Run, get: Get, chunked: bool) -> None:
    with serving(http(0.02, 0.03, chunked)) as peer:
        account = run(hooked(record(lambda: get(peer.port))))
    assert account.result is None
    for asked, replied in zip(peer.asked, peer.replied, strict=True):
        # Between head and body the client runs, and on a busy machine waits for its turn.
        account.is_all("upstream", asked, replied, within=6, but=["loop"])
    assert set(account.labels("upstream")) == {f"GET 127.0.0.1:{peer.port}"}
    assert set(account.labels("upstream_wait")) <= {"connect"}
    assert account.upstream_count == 2


def in_threads(get: Callable[[], Any], asked: list[int]) -> Work:
    def job() -> None:
        asked.append(clock())
        get()

    return lambda: anyio.to_thread.run_sync(job)


async def pooled_httpx(url: str, asked: list[int]) -> list[Recorded]:
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as client:

        async def work() -> None:
            asked.append(clock())
            await client.get(url)

        return list(await asyncio.gather(record(work), record(work)))


async def pooled_httpx_in_threads(url: str, asked: list[int]) -> list[Recorded]:
    with httpx.Client(limits=httpx.Limits(max_connections=1)) as client:
        work = in_threads(lambda: client.get(url), asked)
        return list(await asyncio.gather(record(work), record(work)))


async def pooled_requests(url: str, asked: list[int]) -> list[Recorded]:
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(pool_maxsize=1, pool_block=True))
        work = in_threads(lambda: session.get(url), asked)
        return list(await asyncio.gather(record(work), record(work)))


@pytest.mark.parametrize("pooled", [pooled_httpx, pooled_httpx_in_threads, pooled_requests])
def test_waiting_for_a_connection_is_not_the_call(run: Run, pooled: Any) -> None:
    asked: list[int] = []
    with serving(http(0.05)) as peer:
        accounts = run(hooked(pooled(f"http://127.0.0.1:{peer.port}/", asked)))
    first, second = sorted(accounts, key=lambda account: account.ended)
    # Before it asks the pool the client prepares its call.
    second.is_all("upstream_wait", max(asked) + 15 * MS, peer.replied[0], within=3, but=["loop"])
    assert second.ms("upstream_wait") > 20
    second.is_all("upstream", peer.asked[1], peer.replied[1], within=6)
    assert second.labels("upstream_wait")[0] == "pool"
    assert first.ms("upstream_wait", "pool") < 3


@pytest.mark.parametrize("get", WAYS)
def test_a_call_carries_the_trace_on(run: Run, get: Get) -> None:
    with serving(http()) as peer:
        request = Recorded(traceparent=PARENT.encode(), number=3)
        run(hooked(record(lambda: get(peer.port), request)))
    child = span_id(request.journal.instance, 3)
    for head in peer.heads:
        assert head.lower().count(b"traceparent") == 1
        assert f"traceparent: 00-{TRACE}-{child:016x}-01".encode() in head.lower()


@pytest.mark.parametrize("traced", [b"", b"nonsense"])
def test_without_a_trace_there_is_none_to_carry_on(run: Run, traced: bytes) -> None:
    with serving(http()) as peer:
        run(hooked(record(lambda: get_httpx(peer.port), Recorded(traceparent=traced))))
    assert not any(b"traceparent" in head.lower() for head in peer.heads)


def test_where_the_application_has_a_server_span_of_its_own_that_is_the_parent(run: Run) -> None:
    context = SimpleNamespace(is_valid=True, trace_id=int(TRACE, 16), span_id=0xB7, trace_flags=0)
    span = SimpleNamespace(get_span_context=lambda: context)
    with serving(http()) as peer:
        request = Recorded(traceparent=PARENT.encode(), foreign=span)
        run(hooked(record(lambda: get_httpx(peer.port), request)))
    assert f"traceparent: 00-{TRACE}-00000000000000b7-00".encode() in peer.heads[0].lower()


def test_a_trace_of_the_applications_own_is_left_alone(run: Run) -> None:
    own = {"TraceParent": "00-11111111111111111111111111111111-2222222222222222-01"}
    with serving(http()) as peer:

        async def work() -> None:
            url = f"http://127.0.0.1:{peer.port}/"
            async with httpx.AsyncClient() as client:
                await client.get(url, headers=own)
            await anyio.to_thread.run_sync(lambda: requests.get(url, headers=own))
            await anyio.to_thread.run_sync(lambda: urllib3.request("GET", url, headers=own))

        account = run(hooked(record(work, Recorded(traceparent=PARENT.encode()))))
    assert account.upstream_count == 3
    for head in peer.heads:
        assert head.lower().count(b"traceparent") == 1
        assert b"2222222222222222" in head
    assert list(own) == ["TraceParent"]


def test_a_clients_own_headers_are_not_changed(run: Run) -> None:
    with serving(http()) as peer:
        pool = urllib3.HTTPConnectionPool("127.0.0.1", peer.port, headers={"X": "y"})
        request = Recorded(traceparent=PARENT.encode())
        run(hooked(record(lambda: anyio.to_thread.run_sync(pool.urlopen, "GET", "/"), request)))
        pool.close()
    assert b"traceparent" in peer.heads[0]
    assert pool.headers == {"X": "y"}


def test_a_call_that_fails_is_over(run: Run) -> None:
    async def work() -> None:
        async with httpx.AsyncClient(timeout=0.03) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get(f"http://127.0.0.1:{peer.port}/")
            with pytest.raises(httpx.ConnectError):
                await client.get("http://127.0.0.1:1/")
        await asyncio.sleep(0.03)

    with serving(http(0.5)) as peer:
        account = run(hooked(record(work)))
    assert account.result is None
    assert account.ms("other_wait") > 29
    assert account.upstream_count == 2


async def get_late(url: str, ready: asyncio.Event, uds: str | None = None) -> None:
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=uds)) as client:
        await client.get(url)
        ready.set()
        await client.get(url)


async def late(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> tuple[Recorded, int, int]:
    """Record work that is blocked by somebody else's task from 8 ms after it says that it is ready."""
    ready = asyncio.Event()

    async def block() -> tuple[int, int]:
        await ready.wait()
        await asyncio.sleep(0.008)
        start = clock()
        time.sleep(0.2)  # noqa: ASYNC251  # the mistake that is measured
        return start, clock()

    other = asyncio.create_task(block())
    return await record(lambda: work(ready)), *await other


def test_a_reply_that_a_busy_loop_reads_late_is_a_wait_for_the_loop(run: Run) -> None:
    with serving(http(0.02)) as peer:
        url = f"http://127.0.0.1:{peer.port}/"
        account, start, end = run(hooked(late(lambda ready: get_late(url, ready))))
    came = peer.replied[1]
    assert start < came < end
    assert account.between(came, end)["loop"] == pytest.approx((end - came) / MS, abs=5)
    assert account.between(start, came)["upstream"] == pytest.approx((came - start) / MS, abs=5)
    assert account.uncertain == 0


def test_where_the_kernel_cannot_tell_the_wait_is_uncertain(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "peer")
    with serving(http(0.02), path) as peer:
        account, start, end = run(hooked(late(lambda ready: get_late("http://peer/", ready, path))))
    assert start < peer.replied[1] < end
    account.is_all("upstream", start, end)
    assert account.uncertain / MS == pytest.approx((end - start) / MS, abs=3)


def test_disarmed_nothing_is_left(armed: Agent) -> None:
    armed.disarm()
    for function in (
        httpcore.AsyncConnectionPool.handle_async_request,
        httpcore.ConnectionPool.handle_request,
        urllib3.HTTPConnectionPool.urlopen,
        urllib3.HTTPResponse.read,
    ):
        assert "timesplit" not in function.__code__.co_filename
