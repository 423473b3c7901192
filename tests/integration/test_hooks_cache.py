"""A real Valkey under redis-py and valkey-py: commands, pipelines, connections and pools.

The truth is told by the server: BLPOP of a list that is empty lasts, and TIME stamps before and after.
"""

import asyncio
import contextlib
import importlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio.to_thread
import pytest
import redis.asyncio
import valkey.asyncio

from tests.integration.recorded import JIFFY, LOOPS, MS, Recorded, Run, hooked, record
from tests.wallclock import monotonic
from timesplit.instrumentation import cache, offload
from timesplit.instrumentation.agent import Agent
from timesplit.instrumentation.loop import clock, here

PACKAGES = {"redis": redis, "valkey": valkey}
Stamps = tuple[int, int]


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    return LOOPS[request.param]


@pytest.fixture(params=list(PACKAGES))
def package(request: pytest.FixtureRequest) -> Any:
    return PACKAGES[request.param]


@pytest.fixture(autouse=True)
def armed() -> Iterator[Agent]:
    agent = Agent()
    offload.arm_anyio(agent)
    cache.arm_redis(agent)
    cache.arm_valkey(agent)
    assert [hook for hook in agent.hooks.found.values() if not hook.armed] == []
    yield agent
    agent.disarm()


@contextlib.asynccontextmanager
async def client(package: Any, url: str, **options: Any) -> AsyncIterator[Any]:
    pool = package.asyncio.BlockingConnectionPool.from_url(url, **options)
    made = getattr(package.asyncio, package.__name__.capitalize())(connection_pool=pool)
    try:
        yield made
    finally:
        await made.aclose()
        await pool.disconnect()


def stamped(pipeline: Any, seconds: float = 0.05) -> Any:
    """Fill a pipeline whose answers tell when the server began and ended to wait."""
    pipeline.time()
    pipeline.execute_command("BLPOP", "nothing", seconds)
    pipeline.time()
    return pipeline


def stamps(answers: Any) -> Stamps:
    (from_s, from_us), _, (to_s, to_us) = answers
    return monotonic(from_s + from_us / 1e6), monotonic(to_s + to_us / 1e6)


def test_commands_are_cache_by_name(run: Run, valkey: str, package: Any) -> None:
    async def main() -> Recorded:
        async with client(package, valkey) as made:

            async def work() -> Stamps:
                await made.set("key", "secret")
                assert await made.get("key") == b"secret"
                start = clock()
                await made.execute_command("BLPOP", "nothing", 0.05)
                return start, clock()

            return await record(work)

    account = run(hooked(main()))
    account.is_all("cache", *account.result, but=["loop"])
    assert account.labels("cache")[0] == "connect"
    assert set(account.labels("cache")) <= {"connect", "SET", "GET", "BLPOP"}
    assert account.ms("cache", "BLPOP") > 40
    assert account.ms("other_wait") < 1


def test_a_pipeline_is_one(run: Run, valkey: str, package: Any) -> None:
    async def main() -> Recorded:
        async with client(package, valkey) as made:

            async def work() -> Stamps:
                async with made.pipeline(transaction=False) as pipeline:
                    return stamps(await stamped(pipeline).execute())

            return await record(work)

    account = run(hooked(main()))
    account.is_all("cache", *account.result, within=JIFFY)
    assert account.labels("cache") == ["connect", "PIPELINE"]


def test_waiting_for_a_pool_that_is_full_has_a_name(run: Run, valkey: str, package: Any) -> None:
    async def main() -> list[Recorded]:
        async with client(package, valkey, max_connections=1) as made:

            async def work() -> Stamps:
                async with made.pipeline(transaction=False) as pipeline:
                    return stamps(await stamped(pipeline).execute())

            return list(await asyncio.gather(record(work), record(work)))

    first, second = sorted(run(hooked(main())), key=lambda account: account.ended)
    second.is_all("other_wait", *first.result, within=2, but=["loop"])
    assert "cache pool" in second.labels("other_wait")
    assert second.ms("other_wait", "") < 1
    second.is_all("cache", *second.result, within=JIFFY)


def test_commands_in_threads_are_cache(run: Run, valkey: str, package: Any) -> None:
    pool = package.BlockingConnectionPool.from_url(valkey, max_connections=1)
    made = getattr(package, package.__name__.capitalize())(connection_pool=pool)

    def job() -> Stamps:
        made.get("key")
        with made.pipeline(transaction=False) as pipeline:
            return stamps(stamped(pipeline).execute())

    async def main() -> list[Recorded]:
        work = [record(lambda: anyio.to_thread.run_sync(job)) for _ in range(2)]
        return list(await asyncio.gather(*work))

    first, second = sorted(run(hooked(main())), key=lambda account: account.ended)
    made.close()
    pool.disconnect()
    for account in (first, second):
        account.is_all("cache", *account.result)
        assert {"GET", "PIPELINE"} <= set(account.labels("cache"))
    assert "connect" in first.labels("cache") + second.labels("cache")
    assert second.ms("other_wait", "cache pool") > 40


def test_messages_are_waited_for_by_name(run: Run, valkey: str, package: Any) -> None:
    async def main() -> Recorded:
        async with client(package, valkey) as made, made.pubsub() as listener:
            await listener.subscribe("news")
            await listener.get_message(timeout=1)  # that it is subscribed

            async def work() -> Stamps:
                start = clock()
                await listener.get_message(timeout=0.05)
                return start, clock()

            return await record(work)

    account = run(hooked(main()))
    account.is_all("other_wait", *account.result, but=["loop"])
    assert account.ms("other_wait", "pubsub") > 40
    assert "cache" not in account.parts


@pytest.mark.parametrize("ending", ["error", "cancelled"])
def test_after_a_command_that_failed_waits_have_their_own_part_again(
    run: Run, valkey: str, package: Any, ending: str
) -> None:
    async def main() -> Recorded:
        async with client(package, valkey) as made:

            async def work() -> Stamps:
                if ending == "error":
                    with contextlib.suppress(package.ResponseError):
                        await made.execute_command("NONSENSE", "secret")
                else:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.03):
                            await made.execute_command("BLPOP", "nothing", 3)
                assert here.strand is not None
                assert here.strand.source is None
                start = clock()
                await asyncio.sleep(0.05)
                return start, clock()

            return await record(work)

    account = run(hooked(main()))
    account.is_all("other_wait", *account.result, but=["loop"])


def test_a_reply_that_a_busy_loop_reads_late_is_a_wait_for_the_loop(
    run: Run, valkey: str, package: Any
) -> None:
    async def main() -> tuple[Recorded, int, int]:
        ready = asyncio.Event()

        async def block() -> tuple[int, int]:
            await ready.wait()
            await asyncio.sleep(0.008)
            start = clock()
            time.sleep(0.2)  # noqa: ASYNC251  # the mistake that is measured
            return start, clock()

        async with client(package, valkey) as made:

            async def work() -> Stamps:
                await made.ping()
                ready.set()
                async with made.pipeline(transaction=False) as pipeline:
                    return stamps(await stamped(pipeline, 0.03).execute())

            other = asyncio.create_task(block())
            return await record(work), *await other

    account, start, end = run(hooked(main()))
    came = account.result[1]
    assert start < came < end
    assert account.between(came, end)["loop"] == pytest.approx((end - came) / MS, abs=5)
    assert account.between(start, came)["cache"] == pytest.approx((came - start) / MS, abs=5)
    assert account.uncertain == 0


@pytest.mark.parametrize(
    ("command", "label"),
    [
        ("GET", "GET"),
        (b"get", "GET"),
        ("CONFIG GET", "CONFIG"),
        ("JSON.SET", "JSON.SET"),
        ("a" * 99, "command"),
    ],
)
def test_a_label_is_a_commands_name(command: Any, label: str) -> None:
    assert cache.command_name(command) == label


def test_disarmed_nothing_is_left(armed: Agent, package: Any) -> None:
    armed.disarm()
    name = package.__name__
    for folder in (name, f"{name}.asyncio"):
        clients = importlib.import_module(f"{folder}.client")
        connections = importlib.import_module(f"{folder}.connection")
        for function in (
            getattr(clients, name.capitalize()).execute_command,
            clients.Pipeline.execute,
            connections.AbstractConnection.read_response,
            connections.Connection._connect,
        ):
            assert "timesplit" not in function.__code__.co_filename
