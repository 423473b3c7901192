"""A real PostgreSQL under SQLAlchemy, asyncpg and psycopg: what is charged to pool, connection and query.

The truth is told by the database: it stamps when its statement began and when it ended.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from itertools import pairwise
from typing import Any

import anyio.to_thread
import asyncpg
import psycopg
import psycopg_pool
import pytest
import sqlalchemy
import sqlalchemy.ext.asyncio
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.recorded import JIFFY, LOOPS, MS, Recorded, Run, hooked, record
from tests.wallclock import monotonic
from timesplit.instrumentation import database, offload, postgres
from timesplit.instrumentation.agent import Agent
from timesplit.instrumentation.loop import clock, here

NOW = "extract(epoch FROM clock_timestamp())::float8"
SLEEP = f"SELECT {NOW}, pg_sleep(0.05), {NOW} FROM pg_am LIMIT 1"
LABEL = "SELECT pg_am"
ASYNC_DRIVERS = ["asyncpg", "psycopg"]
Stamps = tuple[int, int]


def stamps(row: Any) -> Stamps:
    """Return when the database began and ended a statement, on our clock."""
    return monotonic(row[0]), monotonic(row[2])


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    return LOOPS[request.param]


@pytest.fixture(autouse=True)
def armed() -> Iterator[Agent]:
    agent = Agent()
    offload.arm_anyio(agent)
    database.arm_dialects(agent)
    database.arm_pool(agent)
    postgres.arm_asyncpg(agent)
    postgres.arm_psycopg(agent)
    postgres.arm_psycopg_pool(agent)
    assert [hook for hook in agent.hooks.found.values() if not hook.armed] == []
    yield agent
    agent.disarm()


@contextlib.asynccontextmanager
async def engine(url: str, driver: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    made = sqlalchemy.ext.asyncio.create_async_engine(
        make_url(url).set(drivername=f"postgresql+{driver}"), **options
    )
    try:
        yield made
    finally:
        await made.dispose()


def sync_engine(url: str, **options: Any) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(make_url(url).set(drivername="postgresql+psycopg"), **options)


async def select(engine: AsyncEngine, statement: str = SLEEP) -> Stamps:
    async with engine.connect() as connection:
        return stamps((await connection.execute(text(statement))).one())


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
def test_a_statement_is_a_query_once_whatever_lies_below(run: Run, postgres: str, driver: str) -> None:
    async def main() -> tuple[Recorded, Recorded]:
        async with engine(postgres, driver) as made:
            return await record(lambda: select(made)), await record(lambda: select(made))

    first, second = run(hooked(main()))
    for account in (first, second):
        account.is_all("query", *account.result, within=JIFFY)
        assert account.query_count == 1
        assert set(account.labels("query")) <= {LABEL, "ROLLBACK"}
        assert account.ms("other_wait") < 1
    assert first.labels("db_connect") == ["connect"]
    assert "db_connect" not in second.parts


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
def test_waiting_for_the_pool_is_neither_connecting_nor_querying(
    run: Run, postgres: str, driver: str
) -> None:
    async def main() -> list[Recorded]:
        async with engine(postgres, driver, pool_size=1, max_overflow=0, pool_pre_ping=True) as made:
            return await asyncio.gather(*(record(lambda: select(made)) for _ in range(3)))

    accounts = run(hooked(main()))
    assert accounts[0].labels("db_connect") == ["connect"]
    for before, account in pairwise(accounts):
        account.is_all("pool_wait", account.began, before.result[1], but=["loop"])
        account.is_all("query", *account.result, within=JIFFY)
        assert account.labels("db_connect") == ["ping"]
        assert account.query_count == 1


def test_a_query_in_a_thread_is_a_query(run: Run, postgres: str) -> None:
    made = sync_engine(postgres, pool_size=1, max_overflow=0, pool_pre_ping=True)

    asked: list[int] = []

    def job() -> Stamps:
        asked.append(clock())
        with made.connect() as connection:
            found = stamps(connection.execute(text(SLEEP)).one())
            connection.commit()
        time.sleep(0.02)
        return found

    async def main() -> list[Recorded]:
        return await asyncio.gather(*(record(lambda: anyio.to_thread.run_sync(job)) for _ in range(2)))

    first, second = sorted(run(hooked(main())), key=lambda account: account.ended)
    made.dispose()
    for account in (first, second):
        account.is_all("query", *account.result, within=JIFFY)
        assert account.ms("offload_run") >= 20
        assert account.query_count == 1
    assert first.labels("db_connect")[0] == "connect"
    assert second.labels("db_connect") == ["ping"]
    second.is_all("pool_wait", max(asked), first.result[1])


def test_a_query_that_blocks_the_loop_stays_route_but_counts(run: Run, postgres: str) -> None:
    made = sync_engine(postgres)

    async def work() -> Stamps:
        with made.connect() as connection:
            return stamps(connection.execute(text(SLEEP)).one())

    account = run(hooked(record(work)))
    made.dispose()
    assert account.between(*account.result).keys() == {"route"}
    assert account.query_count == 1


def test_transactions_are_queries_that_do_not_count(run: Run, postgres: str) -> None:
    async def main() -> Recorded:
        async with engine(postgres, "asyncpg") as made:

            async def work() -> None:
                async with made.begin() as connection:
                    await connection.execute(text("CREATE TEMPORARY TABLE things (id int)"))
                    await connection.execute(text("INSERT INTO things VALUES (:id)"), [{"id": 1}, {"id": 2}])

            return await record(work)

    account = run(hooked(main()))
    assert account.query_count == 2
    assert account.labels("query") == ["CREATE", "INSERT things", "COMMIT"]


@pytest.mark.parametrize("ending", ["error", "cancelled"])
@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
def test_after_a_query_that_failed_waits_have_their_own_part_again(
    run: Run, postgres: str, driver: str, ending: str
) -> None:
    async def main() -> Recorded:
        async with engine(postgres, driver) as made:
            await select(made)

            async def work() -> Stamps:
                if ending == "error":
                    with contextlib.suppress(sqlalchemy.exc.DBAPIError):
                        await select(made, "SELECT 1/0")
                else:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.03):
                            await select(made, "SELECT pg_sleep(3)")
                assert here.strand is not None
                assert here.strand.source is None
                start = clock()
                await asyncio.sleep(0.05)
                return start, clock()

            return await record(work)

    account = run(hooked(main()))
    assert account.query_count == 1
    account.is_all("other_wait", *account.result, but=["loop"])
    assert account.between(account.began, account.result[0]).get("other_wait", 0) < 1


async def asyncpg_alone(url: str) -> Stamps:
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT $1::int", 7) == 7
    async with connection.transaction():
        found = stamps(await connection.fetchrow(SLEEP))
        await connection.executemany("SELECT $1::int", [(1,), (2,)])
        async for _ in connection.cursor("SELECT * FROM generate_series(1, 120)"):
            pass
    await connection.close()
    return found


async def psycopg_alone(url: str) -> Stamps:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = await connection.execute("SELECT %s::int", (7,))
        assert await cursor.fetchone() == (7,)
        found = stamps(await (await connection.execute(SLEEP)).fetchone())
        await cursor.executemany("SELECT %s::int", [(1,), (2,)])
        async with connection.cursor("named") as named:
            await named.execute("SELECT * FROM generate_series(1, 120)")
            await named.fetchall()
    return found


@pytest.mark.parametrize("alone", [asyncpg_alone, psycopg_alone])
def test_drivers_are_seen_without_sqlalchemy(
    run: Run, postgres: str, alone: Callable[[str], Coroutine[Any, Any, Stamps]]
) -> None:
    account = run(hooked(record(lambda: alone(postgres))))
    account.is_all("query", *account.result, within=JIFFY)
    assert account.query_count == 4
    assert account.labels("db_connect")[0] == "connect"
    assert {"SELECT", LABEL, "SELECT generate_series"} <= set(account.labels("query"))
    assert account.ms("other_wait") < 1


Pooled = tuple[list[Recorded], list[int]]  # two accounts, and when each asked the pool


async def asyncpg_pool(url: str) -> Pooled:
    asked: list[int] = []
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:

        async def work() -> Stamps:
            asked.append(clock())
            return stamps(await pool.fetchrow(SLEEP))

        return list(await asyncio.gather(record(work), record(work))), asked


async def psycopg_async_pool(url: str) -> Pooled:
    asked: list[int] = []
    check = psycopg_pool.AsyncConnectionPool.check_connection
    async with psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=1, check=check) as pool:
        await pool.wait()

        async def work() -> Stamps:
            asked.append(clock())
            async with pool.connection() as connection:
                return stamps(await (await connection.execute(SLEEP)).fetchone())

        return list(await asyncio.gather(record(work), record(work))), asked


async def psycopg_thread_pool(url: str) -> Pooled:
    asked: list[int] = []
    with psycopg_pool.ConnectionPool(url, min_size=1, max_size=1) as pool:
        pool.wait()

        def job() -> Stamps:
            asked.append(clock())
            with pool.connection() as connection:
                return stamps(connection.execute(SLEEP).fetchone())

        work = [record(lambda: anyio.to_thread.run_sync(job)) for _ in range(2)]
        return list(await asyncio.gather(*work)), asked


@pytest.mark.parametrize("pooled", [asyncpg_pool, psycopg_async_pool, psycopg_thread_pool])
def test_the_drivers_pools_are_pools(
    run: Run, postgres: str, pooled: Callable[[str], Coroutine[Any, Any, Pooled]]
) -> None:
    accounts, asked = run(hooked(pooled(postgres)))
    first, second = sorted(accounts, key=lambda account: account.ended)
    second.is_all("pool_wait", max(asked), first.result[1], but=["loop"])
    assert first.ms("pool_wait") < second.ms("pool_wait")
    for account in (first, second):
        account.is_all("query", *account.result, within=JIFFY)
        assert account.query_count == 1
        assert "connect" not in account.labels("db_connect")


LATE = f"SELECT 0, pg_sleep(0.02), {NOW}"


async def late_sqlalchemy(url: str, driver: str, ready: asyncio.Event) -> int:
    async with engine(url, driver) as made, made.connect() as connection:
        await connection.execute(text(LATE))
        ready.set()
        return stamps((await connection.execute(text(LATE))).one())[1]


async def late_asyncpg(url: str, _: str, ready: asyncio.Event) -> int:
    connection = await asyncpg.connect(url)
    await connection.fetchrow(LATE)
    ready.set()
    ended = stamps(await connection.fetchrow(LATE))[1]
    await connection.close()
    return ended


async def late_psycopg(url: str, _: str, ready: asyncio.Event) -> int:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(LATE)
        ready.set()
        return stamps(await (await connection.execute(LATE)).fetchone())[1]


@pytest.mark.parametrize(
    ("work", "driver"),
    [(late_sqlalchemy, "asyncpg"), (late_sqlalchemy, "psycopg"), (late_asyncpg, ""), (late_psycopg, "")],
)
def test_a_reply_that_a_busy_loop_reads_late_is_a_wait_for_the_loop(
    run: Run, postgres: str, work: Any, driver: str
) -> None:
    async def main() -> tuple[Recorded, int, int]:
        ready = asyncio.Event()

        async def block() -> tuple[int, int]:
            await ready.wait()
            await asyncio.sleep(0.008)
            start = clock()
            time.sleep(0.2)  # noqa: ASYNC251  # the mistake that is measured
            return start, clock()

        other = asyncio.create_task(block())
        return await record(lambda: work(postgres, driver, ready)), *await other

    account, start, end = run(hooked(main()))
    came = account.result
    assert start < came < end
    assert account.between(came, end)["loop"] == pytest.approx((end - came) / MS, abs=5)
    assert account.between(start, came)["query"] == pytest.approx((came - start) / MS, abs=5)
    assert account.uncertain == 0


def test_disarmed_nothing_is_left(armed: Agent) -> None:
    armed.disarm()
    for function in (
        sqlalchemy.engine.default.DefaultDialect.do_execute,
        sqlalchemy.pool.QueuePool._do_get,
        psycopg.AsyncConnection.wait,
        psycopg.connect,
        psycopg_pool.ConnectionPool.getconn,
    ):
        assert "timesplit" not in function.__code__.co_filename
    assert asyncpg.protocol.Protocol.__dict__.keys().isdisjoint(postgres._PROTOCOL)
