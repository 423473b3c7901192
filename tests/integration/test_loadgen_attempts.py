"""Every attempt on the wire is a row, with its instants, its reason and its ids."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.generator_target import Run, Seen, Target, load, named
from timesplit.schema import CLIENT, HOSTS
from timesplit.tracecontext import tracestate

MS = 1_000_000
SLACK = 80 * MS  # of a machine that does other things as well
SCENARIO = """
class Everything(FastHttpUser):
    network_timeout = 0.3
    wait_time = constant(60)

    @task
    def once(self):
        self.client.get("/ok")
        self.client.get("/ok?page=2")
        self.client.get("/ok", name="/named/{it}")
        self.client.get("/redirect")
        self.client.get("/redirect", name="/not-followed", allow_redirects=False)
        self.client.post("/redirect", json={"a": 1}, name="/posted")
        self.client.get("/hints")
        self.client.get("/drip")
        self.client.get("/missing")
        self.client.get("/broken")
        with self.client.get("/missing", name="/expected", catch_response=True) as response:
            response.success()
        with self.client.get("/ok", name="/wrong", catch_response=True) as response:
            response.failure("not what it should be")
        with self.client.get("/ok", name="/outer", catch_response=True) as response:
            self.client.get("/missing", name="/inner")
        self.client.get("/ok", name="/never-judged", catch_response=True)
        self.client.get("/slow?1", name="/timeout")
        self.client.get("/reset")
        self.client.get("/half")
        self.client.get("/until-close")
        self.client.get("/close")
        self.client.get("http://127.0.0.1:9/", name="/refused")
        self.client.post("/ok", data=iter([b"in ", b"pieces"]), name="/chunked")
        self.client.get("/ok", headers={"traceparent": "mine"}, name="/own-context")
"""


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with Target() as target:
        yield target


@pytest.fixture(scope="module")
def run(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load(tmp_path_factory.mktemp("attempts"), SCENARIO, target.url, "-u", "1", "-t", "2s")


@pytest.fixture(scope="module")
def rows(run: Run) -> list[dict[str, Any]]:
    return run.rows(CLIENT)


def seen_by_ids(target: Target) -> dict[tuple[bytes, bytes], Seen]:
    return {seen.ids: seen for seen in target.seen}


def only(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (row,) = named(rows, name)
    return row


def test_each_request_that_the_service_saw_is_one_row_and_the_reverse(
    rows: list[dict[str, Any]], target: Target
) -> None:
    sent = [(row["trace_id"], row["span_id"]) for row in rows if row["error"] != "refused"]

    assert len(set(sent)) == len(sent)
    assert sorted(sent) == sorted(seen.ids for seen in target.seen)


def test_trace_ids_begin_with_the_key_of_the_run_and_are_random_otherwise(
    run: Run, rows: list[dict[str, Any]]
) -> None:
    assert {row["trace_id"][:8].hex() for row in rows} == {run.meta["key"]}
    assert len({row["trace_id"][8:] for row in rows}) == len(rows)


def test_requests_are_marked_as_ours(target: Target) -> None:
    assert [seen.headers["tracestate"] for seen in target.seen] == [
        tracestate(seen.ids[1]) for seen in target.seen
    ]


@pytest.mark.parametrize(
    ("name", "status", "error", "is_done"),
    [
        ("GET /ok", 200, None, True),
        ("GET /named/{it}", 200, None, True),
        ("GET /missing", 404, "status", True),
        ("GET /broken", 500, "status", True),
        ("GET /expected", 404, None, True),
        ("GET /wrong", 200, "failed: not what it should be", True),
        ("GET /outer", 200, None, True),
        ("GET /inner", 404, "status", True),
        ("GET /never-judged", 200, None, True),
        ("GET /timeout", None, "timeout", False),
        ("GET /reset", None, "reset", False),
        ("GET /half", 200, "reset", False),
        ("GET /until-close", 200, None, True),
        ("GET /refused", None, "refused", False),
    ],
)
def test_an_attempt_says_how_it_ended(
    rows: list[dict[str, Any]], name: str, status: int | None, error: str | None, is_done: bool
) -> None:
    for row in named(rows, name):
        assert (row["status"], row["error"], row["done"] is not None) == (status, error, is_done)


def test_a_query_is_no_part_of_a_name(rows: list[dict[str, Any]]) -> None:
    assert len(named(rows, "GET /ok")) == 2


def test_instants_are_in_order_and_the_service_stands_between_them(
    rows: list[dict[str, Any]], target: Target
) -> None:
    seen = seen_by_ids(target)
    answered = [row for row in rows if row["done"] is not None]
    assert len(answered) > 15
    for row in answered:
        at = seen[row["trace_id"], row["span_id"]].at
        assert row["intended"] <= row["sent"] <= row["sent"] + row["connect_ns"] <= at
        assert at <= row["first_byte"] <= row["done"]


def test_a_redirect_is_two_attempts_and_the_second_is_due_when_the_first_is_done(
    rows: list[dict[str, Any]],
) -> None:
    first, second = named(rows, "GET /redirect")

    assert (first["status"], second["status"]) == (302, 200)
    assert second["intended"] == first["done"]
    assert first["done"] - first["sent"] >= 50 * MS > second["done"] - second["intended"]


def test_a_redirect_changes_the_method_and_not_the_name(rows: list[dict[str, Any]]) -> None:
    assert [row["method"] for row in named(rows, "POST /posted")] == ["POST", "GET"]


def test_a_redirect_that_is_not_followed_is_one_attempt(rows: list[dict[str, Any]]) -> None:
    assert only(rows, "GET /not-followed")["status"] == 302


def test_the_first_byte_is_the_answers_and_not_an_interim_ones(rows: list[dict[str, Any]]) -> None:
    row = only(rows, "GET /hints")

    assert row["status"] == 200
    assert row["first_byte"] - row["sent"] >= 50 * MS


def test_a_body_is_done_with_its_last_byte(rows: list[dict[str, Any]]) -> None:
    row = only(rows, "GET /drip")

    assert row["bytes"] == 30
    assert row["done"] - row["first_byte"] >= 100 * MS


def test_a_connection_is_reused_exactly_where_the_service_sees_it_again(
    rows: list[dict[str, Any]], target: Target
) -> None:
    by_ids = {(row["trace_id"], row["span_id"]): row for row in rows}
    known: set[int] = set()
    for seen in target.seen:
        row = by_ids[seen.ids]
        assert row["reused"] == (seen.connection in known)
        assert (row["connect_ns"] > 0) == (not row["reused"])
        known.add(seen.connection)
    assert 3 < len(known) < len(rows) / 2


def test_what_was_reset_is_not_tried_again(target: Target) -> None:
    assert [seen.path for seen in target.seen].count("/reset") == 1


def test_a_body_of_unknown_length_arrives(target: Target) -> None:
    assert b"in pieces" in [seen.body for seen in target.seen]


def test_the_process_counts_what_it_began_and_what_it_wrote(run: Run, rows: list[dict[str, Any]]) -> None:
    first, last = sorted(run.rows(HOSTS), key=lambda row: row["monotonic"])

    assert (first["written"], last["written"], last["forwarded"], last["dropped"]) == (
        None,
        len(rows),
        len(rows),
        0,
    )
    assert last["role"] == "generator"
    assert {row["generator"] for row in rows} == {last["instance"]}


def test_waiting_for_a_connection_of_ones_own_is_late_and_not_the_services(
    target: Target, tmp_path: Path
) -> None:
    scenario = """
    class OneConnection(FastHttpUser):
        concurrency = 1
        wait_time = constant(60)

        @task
        def two_at_once(self):
            gevent.joinall([gevent.spawn(self.client.get, "/slow?0.2") for _ in range(2)])
    """
    first, second = named(
        load(tmp_path, scenario, target.url, "-u", "1", "-t", "2s").rows(CLIENT), "GET /slow"
    )

    assert first["sent"] - first["intended"] < 150 * MS
    assert second["sent"] - second["intended"] >= 190 * MS
    assert second["done"] - second["sent"] < 390 * MS


def test_the_first_request_of_a_task_is_due_when_its_think_time_ends(target: Target, tmp_path: Path) -> None:
    scenario = """
    class Thinker(FastHttpUser):
        wait_time = constant(0.3)

        @task
        def think_and_ask(self):
            self.client.get("/slow?0.1", name="/first")
            self.client.get("/ok", name="/second")
            time.sleep(0.05)

    class Paced(FastHttpUser):
        wait_time = constant_pacing(0.3)
        pause = iter([0.5, 0, 0, 0, 0, 0, 0, 0])

        @task
        def ask(self):
            self.client.get("/ok", name="/paced")
            time.sleep(next(self.pause))
    """
    rows = load(tmp_path, scenario, target.url, "-u", "2", "-t", "3s").rows(CLIENT)
    first, second, paced = (named(rows, f"GET /{name}") for name in ("first", "second", "paced"))

    for before, after in zip(second, first[1:], strict=False):
        assert 350 * MS <= after["intended"] - before["done"] <= 350 * MS + SLACK
        assert after["sent"] is None or after["sent"] >= after["intended"]
    for outer, inner in zip(first, second, strict=False):  # the run may end between the two
        assert 0 <= inner["intended"] - outer["done"] < SLACK
    ticks = [after["intended"] - before["intended"] for before, after in pairwise(paced)]
    # The first task took 500 ms: the second one was due at 300 ms and sent at 500 ms.
    assert ticks[0] == pytest.approx(300 * MS, abs=SLACK)
    assert paced[1]["sent"] - paced[1]["intended"] == pytest.approx(200 * MS, abs=SLACK)
    assert ticks[1] == pytest.approx(500 * MS, abs=SLACK)
    assert ticks[2:] == pytest.approx([300 * MS] * len(ticks[2:]), abs=SLACK)
