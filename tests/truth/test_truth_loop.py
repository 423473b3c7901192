"""Loop, route and other waits, and who is to blame, against instants that the routes stamp themselves."""

import inspect
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.journal_reader import Account
from tests.truth import plain_routes
from tests.truth.served import ASYNCIO, JIFFY_MS, MS, UVLOOP, Answer, Service, name, retried, serve, until

SOURCE = inspect.getsource(plain_routes).splitlines()


def line_of(text: str) -> int:
    """Return the line of the routes' file that holds a text."""
    return next(number for number, line in enumerate(SOURCE, 1) if text in line)


def tolerance(ms: float, least: float = 1.0) -> float:
    """What a part may be off its truth."""
    return max(0.02 * ms, least)


def stamps(answer: Answer) -> tuple[int, int]:
    """When the route began and ended what the test is about."""
    return answer.json["start"], answer.json["end"]


@pytest.fixture(scope="module", params=[UVLOOP, ASYNCIO], ids=name)
def behind_middleware(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with serve("tests.truth.middleware_routes:app", request.param, tmp_path_factory.mktemp("mw")) as service:
        yield service


@pytest.mark.parametrize(
    ("path", "label"), [("/sleep", "sleep"), ("/lock", "Lock.acquire"), ("/queue", "Queue.get")]
)
@retried
def test_what_is_awaited_is_an_other_wait_with_its_name(plain: Service, path: str, label: str) -> None:
    answer = plain.get(path)
    account = plain.account(answer)
    start, end = stamps(answer)
    parts = account.within(start, end)
    assert parts["other_wait"] == pytest.approx(50, abs=1.5)  # a timer of a loop counts in ms
    assert parts["other_wait"] + parts.get("loop", 0) == pytest.approx((end - start) / MS, abs=tolerance(50))
    assert (account.other, account.longest("other_wait").label) == (label, label)
    assert (account.method, account.route, account.status) == ("GET", path, 200)


def check_a_queue_behind_blocking_calls(service: Service, count: int = 20) -> None:
    answers = service.burst("/blocking", count)
    answers.sort(key=lambda answer: int(answer.json["start"]))
    line = line_of("time.sleep(seconds)  # noqa")
    for place, answer in enumerate(answers):
        start, end = stamps(answer)
        account = service.account(answer)
        waited = (start - answer.sent) / MS
        before = account.within(account.begin, start)
        assert before.get("read", 0) + before["loop"] == pytest.approx(
            waited, abs=tolerance(waited, JIFFY_MS + 1)
        )
        assert account.within(start, end)["route"] == pytest.approx((end - start) / MS, abs=1)
        assert account.route_cpu_ns / MS < account.ms("route") - 45
        if place:
            blamed = service.blamed(account, account.begin, start)
            assert blamed[f"plain_routes.py:{line} blocking"] == pytest.approx(waited, rel=0.15)


@retried
def test_blocking_calls_on_the_loop_queue_up_and_are_blamed(plain: Service) -> None:
    check_a_queue_behind_blocking_calls(plain)


@retried
def test_the_same_behind_a_middleware_that_makes_tasks(behind_middleware: Service) -> None:
    check_a_queue_behind_blocking_calls(behind_middleware)


@retried
def test_work_in_the_path_is_cpu_time(plain: Service) -> None:
    answer = plain.get("/cpu")
    account = plain.account(answer)
    start, end = stamps(answer)
    assert account.within(start, end) == {"route": pytest.approx((end - start) / MS)}
    used = answer.json["cpu"] / MS
    assert used - 1 < account.route_cpu_ns / MS < used + account.ms("route") - (end - start) / MS + 1


@pytest.mark.parametrize(("path", "kind"), [("/background", 1), ("/teardown", 2)])
@retried
def test_work_after_the_response_is_apart_and_can_be_blamed(plain: Service, path: str, kind: int) -> None:
    connection = plain.connect()
    answer = plain.get(path, connection)
    with connection:
        behind = plain.get("/quick")
    account, victim = plain.account(answer), plain.account(behind)
    work = until(lambda: _work(plain, kind, answer.json["start"]), "the work is not over")
    assert account.ended < work["start"]
    assert answer.done < work["end"]
    assert account.ms("other_wait") < 1
    after = until(lambda: _after(plain, account), "no record of the work")
    assert (after["started"], after["route"]) == (account.ended, path)
    assert work["end"] < after["ended"] < work["end"] + 20 * MS
    busy = (work["middle"] - work["start"]) / MS
    assert after["busy_ns"] / MS == pytest.approx(busy, abs=5)
    if victim.begin < work["middle"] - 10 * MS:
        waited = (victim.started - victim.begin) / MS
        blamed = plain.blamed(victim, victim.begin, victim.started)
        assert sum(ms for place, ms in blamed.items() if place.endswith("work")) > 0.8 * waited - JIFFY_MS


def _work(service: Service, kind: int, since: int) -> dict[str, int] | None:
    found = [work for work in service.get("/seen").json if work["kind"] == kind and work["start"] > since]
    return found[0] if found else None


def _after(service: Service, account: Account) -> dict[str, Any] | None:
    return next((after for after in service.records("after") if after["number"] == account.number), None)


@retried
def test_many_ordinary_requests_are_a_crowd(plain: Service) -> None:
    answers = plain.burst("/short", 100)
    accounts = plain.accounts(answers)
    last = accounts[-1]
    waited = (last.started - last.begin) / MS
    assert waited > 30
    time.sleep(0.3)  # the watchdog writes the last window when all is quiet
    start, end = accounts[0].begin, last.ended
    crowd = [c for c in plain.records("crowd") if c["ended"] > start and c["started"] < end]
    busy = sum(ns for window in crowd for owner, ns in window["rows"].items() if owner == "GET /short") / MS
    blamed = plain.blamed(last, last.begin, last.started)
    # On a busy machine some steps are long, because another process had the core.
    assert busy + sum(blamed.values()) > 0.6 * waited
    assert busy > 0.2 * waited
    steps = [step for step in plain.records("step") if start <= step["started"] < end]
    assert max((step["ended"] - step["started"] for step in steps), default=0) / MS < 0.3 * waited


@retried
def test_requests_on_one_connection_do_not_leak_into_each_other(plain: Service) -> None:
    with plain.connect() as connection:
        answers = [
            plain.get(path, connection) for path in ("/sleep", "/quick", "/cpu", "/quick", "/blocking")
        ]
    accounts = [plain.account(answer) for answer in answers]
    for before, after in itertools.pairwise(accounts):
        assert before.ended <= after.begin + JIFFY_MS * MS
    for account in accounts[1:]:
        assert account.parts["accept"] == 0
    quick = accounts[1], accounts[3]
    for account in quick:
        assert account.ms("other_wait") == 0
        assert account.ms("route") < 10
    assert len({account.number for account in accounts}) == 5


def test_long_responses_in_many_pieces_keep_a_bounded_account(plain: Service) -> None:
    answer = plain.get("/pieces")
    account = plain.account(answer)
    assert len(account.segments) < 200
    assert account.ms("route") > 1


def test_threads_of_clients_get_records_of_their_own(plain: Service) -> None:
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.extend(plain.get("/quick") for _ in range(5)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({plain.account(answer).number for answer in answers}) == 20
    assert all(worker.header["failed"] == 0 for worker in plain.workers())
