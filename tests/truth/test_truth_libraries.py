"""Threads, databases and calls in a real server, held against what the service, its database and its peer stamp."""

from collections import Counter
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pytest

from tests.integration.conftest import postgres, processes  # noqa: F401  # fixtures
from tests.integration.peer import Peer, http_as_asked, serving
from tests.journal_reader import Account
from tests.truth.served import (
    ASYNCIO,
    GUNICORN_UVICORN,
    JIFFY_MS,
    MS,
    UVLOOP,
    Answer,
    Server,
    Service,
    check,
    name,
    serve,
    until,
)

APP = "tests.truth.library_routes:app"
TOKENS = 40
POOL = 20
KERNEL = JIFFY_MS + 0.5  # ms; a jiffy, and what lies between a stamp and the system call after it


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with serving(http_as_asked) as peer:
        yield peer


@pytest.fixture(scope="module")
def env(peer: Peer, postgres: str) -> dict[str, str]:  # noqa: F811  # the fixture
    return {"DATABASE_URL": postgres, "PEER_URL": f"http://127.0.0.1:{peer.port}"}


@pytest.fixture(scope="module", params=[UVLOOP, ASYNCIO], ids=name)
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]
) -> Iterator[Service]:
    server: Server = request.param
    with serve(APP, server, tmp_path_factory.mktemp("libraries"), env=env) as service:
        yield service


def between(account: Account, start: int, end: int) -> Counter[str]:
    """Nanoseconds of each part in a stretch of time."""
    total: Counter[str] = Counter()
    for segment in account.segments:
        total[segment.part] += max(0, min(segment.end, end) - max(segment.start, start))
    return +total


def is_all(
    account: Account, part: str, start: int, end: int, within: float = 1, but: Container[str] = ()
) -> None:
    """Assert that a stretch of time is charged to a part, but for steps, within so many ms or 2 %."""
    found = between(account, start, end)
    other = sum(ns for name, ns in found.items() if name not in (part, "route") and name not in but)
    assert other <= max(within * MS, 0.02 * (end - start)), (part, end - start, found)


def with_accounts(service: Service, answers: list[Answer]) -> list[tuple[dict[str, int], Account]]:
    """What each request stamped and its account, in order of the stamps' begin."""
    service.account(answers[-1], 20)
    wanted = {answer.trace: answer.json for answer in answers}

    def read() -> list[tuple[dict[str, int], Account]] | None:
        accounts = [account for worker in service.workers() for account in worker.requests if account.done]
        found = [(wanted[a.traceparent[3:35]], a) for a in accounts if a.traceparent[3:35] in wanted]
        return found if len(found) == len(wanted) else None

    found = until(read, "not all are done", 20)
    for _, account in found:
        check(account)
    return sorted(found, key=lambda one: min(one[0].values()))


def test_4_threads_are_waited_for_in_waves(service: Service) -> None:
    found = with_accounts(service, service.burst("/thread?seconds=0.2", 100))
    waits = []
    for stamps, account in found:
        is_all(account, "offload_run", stamps["start"], stamps["end"])
        # What a busy loop keeps from a request is the loop's: also a token that nobody uses any more.
        is_all(account, "offload_wait", account.begin, stamps["start"], but=("accept", "read", "loop"))
        assert {s.label for s in account.segments if s.part == "offload_run"} == {"library_routes.thread"}
        waits.append(between(account, account.begin, stamps["start"])["offload_wait"] / MS)
    waves = median(waits[:TOKENS]), median(waits[TOKENS : 2 * TOKENS]), median(waits[2 * TOKENS :])
    assert waves[1] - waves[0] > 100
    assert waves[2] - waves[1] > 100


def test_5_a_thread_that_ends_while_the_loop_is_blocked(service: Service) -> None:
    service.burst("/two-threads?seconds=0", 2)  # starts the threads
    with ThreadPoolExecutor(5) as pool:
        blocking = pool.submit(service.get, "/block-when-two-wait")
        answers = list(pool.map(service.get, ["/two-threads"] * 4))
    blocked = blocking.result().json
    found = with_accounts(service, answers)
    found.sort(key=lambda one: one[0]["start"])
    ends = sorted(stamps["end"] for stamps, _ in found)
    assert blocked["block_start"] < ends[0] < ends[1] < blocked["block_end"]
    for stamps, account in found[:2]:
        is_all(account, "offload_run", stamps["start"], stamps["end"])
        is_all(account, "loop", stamps["end"], stamps["back"])
    waiting = sorted(found[2:], key=lambda one: one[0]["asked"])
    for (stamps, account), freed in zip(waiting, ends[:2], strict=True):
        is_all(account, "offload_wait", max(stamps["asked"], blocked["block_start"]), freed)
        is_all(account, "loop", freed, blocked["block_end"])
        is_all(account, "offload_run", stamps["start"], stamps["end"])


def test_6_a_query_is_the_databases_time(service: Service) -> None:
    answer = service.get("/query")
    account = service.account(answer)
    is_all(account, "query", answer.json["query_start"], answer.json["query_end"], KERNEL)
    assert account.ms("query") < (answer.json["query_end"] - answer.json["query_start"]) / MS + 10
    assert {s.label for s in account.segments if s.part == "query"} <= {"SELECT pg_am", "ROLLBACK"}
    assert account.query_count == 1


def test_6_connections_are_waited_for_in_waves(service: Service) -> None:
    found = with_accounts(service, service.burst("/query", 500))
    found.sort(key=lambda one: one[0]["granted"])
    releases = sorted(stamps["released"] for stamps, _ in found)
    for i, (stamps, account) in enumerate(found):
        assert account.query_count == 1
        is_all(account, "query", stamps["query_start"], stamps["query_end"], KERNEL)
        assert between(account, stamps["asked"], stamps["granted"]).keys() <= {"pool_wait", "loop", "route"}
        if i >= POOL:
            is_all(account, "pool_wait", stamps["asked"], releases[i - POOL])
    assert found[-1][1].ms("pool_wait") > 50 * (500 / POOL - 5)


def test_6_three_workers(env: dict[str, str], tmp_path: Path) -> None:
    with serve(APP, GUNICORN_UVICORN, tmp_path, workers=3, env=env) as service:
        for stamps, account in with_accounts(service, service.burst("/query", 60)):
            is_all(account, "query", stamps["query_start"], stamps["query_end"], KERNEL)


def test_7_a_query_whose_reply_a_busy_loop_reads_late(service: Service) -> None:
    answer = service.get("/late-query")
    account = service.account(answer)
    came, end = answer.json["query_end"], answer.json["block_end"]
    assert answer.json["block_start"] < came < end
    is_all(account, "query", answer.json["query_start"], came, KERNEL)
    is_all(account, "loop", came, end, KERNEL)
    assert account.ms("loop") > 150
    assert account.uncertain_ns < 10 * MS  # of its arrival, not of the late reply


def test_7_a_call_whose_reply_a_busy_loop_reads_late(service: Service, peer: Peer) -> None:
    answer = service.get("/late-call")
    account = service.account(answer)
    start, came, end = answer.json["block_start"], peer.replied[-1], answer.json["block_end"]
    assert start < came < end
    is_all(account, "upstream", start, came, KERNEL)
    is_all(account, "loop", came, end, KERNEL)
    assert account.ms("loop") > 150
    assert account.upstream_count == 2
    assert account.uncertain_ns < 10 * MS  # of its arrival, not of the late reply


def test_8_of_waits_at_once_the_last_one_counts(service: Service, peer: Peer) -> None:
    answer = service.get("/gather")
    account = service.account(answer)
    is_all(account, "upstream", answer.json["start"] + 3 * MS, peer.replied[-1], KERNEL)
    assert between(account, answer.json["start"], answer.json["end"])["upstream"] > 50 * MS
    assert (account.query_count, account.upstream_count) == (1, 1)


def test_14_a_query_in_a_thread_is_a_query(service: Service) -> None:
    service.get("/query-in-thread")  # connects
    answer = service.get("/query-in-thread")
    account = service.account(answer)
    is_all(account, "query", answer.json["query_start"], answer.json["query_end"])
    assert account.query_count == 1
    assert account.ms("offload_run") < 20


def test_14_a_call_in_a_thread_is_a_call(service: Service, peer: Peer) -> None:
    account = service.account(service.get("/call-in-thread"))
    is_all(account, "upstream", peer.asked[-1], peer.replied[-1])
    assert account.upstream_count == 1
