"""Calls in worker threads and processes: what waits for what, told from inside the thread."""

import asyncio
import concurrent.futures
import concurrent.futures.process
import time
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.to_process
import anyio.to_thread
import pytest
from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool

from tests.integration.recorded import LOOPS, MS, Recorded, Run, hooked, record
from timesplit.instrumentation import offload
from timesplit.instrumentation.agent import Agent
from timesplit.instrumentation.ledger import OFFLOAD_WAIT
from timesplit.instrumentation.loop import clock, here

ARMED = (offload.arm_anyio, offload.arm_anyio_processes, offload.arm_threads, offload.arm_processes)


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    return LOOPS[request.param]


@pytest.fixture(autouse=True)
def armed() -> Iterator[Agent]:
    agent = Agent()
    for arm in (*ARMED, offload.arm_fastapi):
        arm(agent)
    yield agent
    agent.disarm()


class Job:
    """A blocking call that stamps when it began and ended."""

    def __init__(self, seconds: float = 0.03) -> None:
        self.seconds = seconds
        self.asked = self.began = self.ended = self.back = 0

    def __call__(self) -> "Job":
        self.began = clock()
        time.sleep(self.seconds)
        self.ended = clock()
        return self

    async def offloaded(self, limiter: anyio.CapacityLimiter | None = None) -> None:
        self.asked = clock()
        await anyio.to_thread.run_sync(self, limiter=limiter)
        self.back = clock()


async def block(after: float, seconds: float) -> None:
    await asyncio.sleep(after)
    time.sleep(seconds)  # noqa: ASYNC251  # the mistake that is measured


def test_wait_run_and_return_are_told_apart(run: Run) -> None:
    job = Job()
    account = run(hooked(record(job.offloaded), block(0.01, 0.09)))

    account.is_all("offload_run", job.began, job.ended)
    account.is_all("loop", job.ended, job.back)
    assert account.ms("loop") > 50
    assert account.labels("offload_run") == ["test_hooks_offload.Job"]


@pytest.mark.parametrize("way", ["to_thread", "run_in_executor", "gather"])
def test_the_standard_librarys_threads_are_seen_too(run: Run, way: str) -> None:
    jobs = [Job(0.05), Job(0.05)]
    pool = concurrent.futures.ThreadPoolExecutor(1)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        if way == "to_thread":
            await asyncio.to_thread(jobs[0])
        elif way == "run_in_executor":
            await loop.run_in_executor(pool, jobs[0])
        else:
            await asyncio.gather(*(loop.run_in_executor(pool, job) for job in jobs))

    account = run(hooked(record(work), block(0.02, 0.06)))
    pool.shutdown()
    last = max(jobs, key=lambda job: job.ended)
    account.is_all("offload_wait", account.began, last.began)  # of one thread, where there are two calls
    account.is_all("offload_run", last.began, last.ended)
    account.is_all("loop", last.ended, account.ended)


async def all_offloaded(jobs: list[Job], tokens: int) -> list[Recorded]:
    limiter = anyio.CapacityLimiter(tokens)
    return list(await asyncio.gather(*(record(partial(job.offloaded, limiter)) for job in jobs)))


def test_a_token_is_waited_for_in_waves(run: Run) -> None:
    jobs = [Job(0.03) for _ in range(6)]
    accounts = run(hooked(all_offloaded(jobs, 2)))

    ends = sorted(job.ended for job in jobs)
    for i, (job, account) in enumerate(zip(jobs, accounts, strict=True)):
        if i >= 2:
            account.is_all("offload_wait", job.asked, ends[i - 2], but=["loop"])
            assert account.ms("offload_wait") > 25 * (i // 2)
        account.is_all("offload_run", job.began, job.ended)


def test_a_token_that_a_busy_loop_keeps_from_others_is_a_wait_for_the_loop(run: Run) -> None:
    jobs = [Job(0.03) for _ in range(6)]
    accounts = run(hooked(all_offloaded(jobs, 2), block(0.01, 0.1)))

    ends = sorted(job.ended for job in jobs)
    for job, account, freed in zip(jobs[2:4], accounts[2:4], ends[:2], strict=True):
        account.is_all("offload_wait", job.asked, freed, within=3)
        assert account.between(freed, job.began)["loop"] > 50
    for job, account, freed in zip(
        jobs[4:], accounts[4:], ends[2:4], strict=True
    ):  # no token lay idle for them
        account.is_all("offload_wait", job.asked, freed, within=3)


def test_errors_and_results_pass_through(run: Run) -> None:
    def fail() -> None:
        raise LookupError("mine")

    account = run(hooked(record(lambda: run_in_threadpool(fail))))
    assert isinstance(account.result, LookupError)
    job = Job(0)
    assert run(hooked(record(lambda: run_in_threadpool(job)))).result is job


def test_a_call_that_is_given_up_is_charged_until_then(run: Run) -> None:
    job = Job(0.1)
    left: list[int] = []

    async def work() -> None:
        with anyio.move_on_after(0.04):
            await anyio.to_thread.run_sync(job, abandon_on_cancel=True)
        left.append(clock())
        assert here.strand is not None
        assert here.strand.part != OFFLOAD_WAIT
        await asyncio.sleep(0.01)
        left.append(clock())

    account = run(hooked(record(work)))
    account.is_all("offload_run", job.began, left[0], but=["loop"])
    account.is_all("other_wait", *left, but=["loop"])
    assert account.ms("offload_run") > 20


def test_the_names_are_those_of_the_functions_that_were_handed_on() -> None:
    def pieces() -> Iterator[int]:
        yield 1

    manager = __import__("contextlib").contextmanager(pieces)()
    assert offload.name_of(time.sleep) == "time.sleep"
    assert offload.name_of(partial(partial(time.sleep), 3)) == "time.sleep"
    assert offload.name_of(manager.__enter__) == "test_hooks_offload.pieces"
    assert offload.name_of(Job()) == "test_hooks_offload.Job"


def _square(number: int) -> int:
    time.sleep(0.02)
    return number * number


@pytest.mark.parametrize("way", ["executor", "anyio"])
def test_a_call_in_another_process_is_a_wait_with_a_name(run: Run, way: str) -> None:
    async def main() -> Recorded:
        with concurrent.futures.ProcessPoolExecutor(
            1, mp_context=__import__("multiprocessing").get_context("spawn")
        ) as pool:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(pool, _square, 1)  # starts the process

            async def work() -> int:
                if way == "anyio":
                    return await anyio.to_process.run_sync(_square, 3)
                return await loop.run_in_executor(pool, _square, 3)

            return await record(work)

    account = run(hooked(main()))
    assert account.result == 9
    assert account.ms("other_wait", "process test_hooks_offload._square") >= 19
    assert account.ms("other_wait", "") < 1


def test_a_dependency_that_is_full_is_a_wait_with_a_name(run: Run) -> None:
    app = FastAPI()
    turns: list[int] = []

    async def one_at_a_time() -> None:
        turns.append(clock())
        await asyncio.sleep(0.03)

    @app.get("/")
    async def route(_: Annotated[None, Depends(one_at_a_time, max_concurrency=1)]) -> None: ...

    async def call() -> None:
        sent: list[Any] = []

        async def receive() -> Any: ...
        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        await app({**scope, "http_version": "1.1"}, receive, send)
        assert sent[0]["status"] == 200

    async def main() -> list[Recorded]:
        return list(await asyncio.gather(record(call), record(call)))

    first, second = run(hooked(main()))
    waited = second.ms("other_wait", "dependency concurrency 1")
    assert waited == pytest.approx((turns[1] - turns[0]) / MS, abs=2)
    assert first.ms("other_wait", "dependency concurrency 1") < waited


def test_disarmed_nothing_is_left(armed: Agent) -> None:
    armed.disarm()
    backend = __import__("anyio._backends._asyncio", fromlist=["x"])
    for function in (
        backend.AsyncIOBackend.run_sync_in_worker_thread,
        backend.CapacityLimiter.release_on_behalf_of,
        concurrent.futures.ThreadPoolExecutor.submit,
        concurrent.futures.ProcessPoolExecutor.submit,
        anyio.to_process.run_sync,
    ):
        assert "timesplit" not in function.__module__ + function.__code__.co_filename
