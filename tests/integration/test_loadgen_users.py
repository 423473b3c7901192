"""The users that do more than ask: bursts, streams, and work that outlives its request."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from tests.generator_target import Run, Target, load, named
from timesplit.schema import CLIENT, JOBS, STREAMS
from timesplit.tracecontext import client_span_id, parse_traceparent

MS = 1_000_000
BURSTS = """
class Bursts(BurstUser):
    paths = ("/slow?0.05", "/ok", "/missing")
    sizes = {"burst-5": 5, "burst-60": 60}
    rounds = 3
    quiet = 0.02
"""


@pytest.fixture
def target() -> Iterator[Target]:
    with Target() as target:
        yield target


@pytest.fixture(scope="module")
def bursts(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with Target() as target:
        return load(tmp_path_factory.mktemp("bursts"), BURSTS, target.url, TIMESPLIT_WARMUP="")


def groups(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["stage"], row["name"], row["burst"]), []).append(row)
    return found


def test_bursts_come_in_their_numbers_and_the_run_ends_by_itself(bursts: Run) -> None:
    sizes = {key: len(rows) for key, rows in groups(bursts.rows(CLIENT)).items()}

    assert sizes == {
        (f"burst-{size}", f"GET {path}", number): size
        for size in (5, 60)
        for path in ("/slow", "/ok", "/missing")
        for number in range(3)
    }


def test_a_run_of_bursts_says_so_and_has_no_warm_up(bursts: Run) -> None:
    meta = bursts.meta

    assert (meta["model"], meta["stages"], meta["warmup_s"]) == ("bursts", ["burst-5", "burst-60"], 0)


def test_the_requests_of_a_burst_are_due_at_one_instant_and_hardly_late(bursts: Run) -> None:
    late = []
    for rows in groups(bursts.rows(CLIENT)).values():
        assert len({row["intended"] for row in rows}) == 1
        late += [row["sent"] - row["intended"] for row in rows]
        assert all(row["connect_ns"] == 0 for row in rows)
    assert len([row for row in bursts.rows(CLIENT) if not row["reused"]]) == 60  # one for each at once
    # A machine that does other things may hold up one of them; in turn they would all be late.
    assert sorted(late)[len(late) * 9 // 10] < 50 * MS
    assert min(late) >= 0


def test_a_burst_is_at_the_service_at_once(bursts: Run) -> None:
    for (_, name, _), rows in groups(bursts.rows(CLIENT)).items():
        if name == "GET /slow":
            assert max(row["sent"] for row in rows) < min(row["done"] for row in rows)


def test_a_burst_whose_connections_are_refused_does_not_wait_for_them(tmp_path: Path) -> None:
    run = load(tmp_path, BURSTS, "http://127.0.0.1:9")

    assert {row["error"] for row in run.rows(CLIENT)} == {"refused"}
    assert len(run.rows(CLIENT)) == 3 * 3 * 65


def test_an_event_stream_is_answered_by_its_first_bytes_and_goes_on_in_a_row_of_its_own(
    target: Target, tmp_path: Path
) -> None:
    scenario = """
    class Listener(FastHttpUser):
        wait_time = constant(60)

        @task
        def listen(self):
            heard = list(self.events("/events", name="/events"))
            assert heard == ["one", "two\\nlines", "three"], heard
            self.client.get("/ok?heard")
            self.client.get("/events", name="/unread")
            next(self.events("/events", name="/left"))
    """
    run = load(tmp_path, scenario, target.url, "-u", "1", "-t", "2s")
    rows, streams = run.rows(CLIENT), run.rows(STREAMS)
    (attempt,), (stream,) = named(rows, "GET /events"), named_stream(streams, "GET /events")

    assert [seen.path for seen in target.seen].count("/ok?heard") == 1
    assert (attempt["trace_id"], attempt["span_id"]) == (stream["trace_id"], stream["span_id"])
    assert (attempt["status"], attempt["error"]) == (200, None)
    assert attempt["done"] - attempt["first_byte"] > 45 * MS
    assert (stream["side"], stream["kind"], stream["messages"], stream["code"]) == ("client", "sse", 3, 200)
    assert stream["opened"] == attempt["sent"]
    assert stream["first"] - attempt["done"] > 45 * MS  # the first bytes are no event
    assert stream["closed"] - stream["first"] > 195 * MS
    assert stream["error"] is None
    assert [one["messages"] for one in named_stream(streams, "GET /unread")] == [3]
    (left,) = named_stream(streams, "GET /left")
    assert (left["messages"], left["error"], left["closed"] is not None) == (1, None, True)


def named_stream(streams: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in streams if row["name"] == name]


def test_a_stream_that_is_open_at_the_end_is_a_row(target: Target, tmp_path: Path) -> None:
    scenario = """
    class Listener(FastHttpUser):
        @task
        def listen(self):
            for _ in self.events("/events"):
                gevent.sleep(0)
                self.environment.runner.stop()
    """
    (stream,) = load(tmp_path, scenario, target.url, "-u", "1", "-t", "2s").rows(STREAMS)

    assert (stream["messages"], stream["closed"], stream["error"]) == (1, None, "unfinished")


@contextmanager
def echoing() -> Iterator[tuple[str, list[Any]]]:
    """Run a WebSocket server that echoes, and closes with 4000 on `bye`."""
    handshakes: list[Any] = []
    ready = threading.Event()
    stop: list[Any] = []

    async def echo(connection: ServerConnection) -> None:
        assert connection.request
        handshakes.append(connection.request.headers)
        async for message in connection:
            if message == "bye":
                await connection.close(4000)
            await connection.send(message)

    async def run() -> None:
        async with serve(echo, "127.0.0.1", 0) as server:
            stop.extend([asyncio.get_running_loop(), asyncio.Event(), server.sockets[0].getsockname()[1]])
            ready.set()
            await stop[1].wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait(10)
    try:
        yield f"http://127.0.0.1:{stop[2]}", handshakes
    finally:
        stop[0].call_soon_threadsafe(stop[1].set)
        thread.join()


def test_a_websocket_is_a_stream_and_its_handshake_carries_the_trace(tmp_path: Path) -> None:
    scenario = """
    class Talker(FastHttpUser):
        wait_time = constant(60)

        @task
        def talk(self):
            with self.websocket("/echo") as connection:
                for word in ("one", "two", "three"):
                    connection.send(word)
                    assert connection.receive() == word
            with self.websocket("/echo", name="/closed-by-service") as connection:
                connection.send("bye")
                assert connection.receive() is None
            try:
                with self.websocket("/echo", name="/given-up", timeout=0.2) as connection:
                    connection.receive()
            except Exception:
                pass
            with self.websocket("/echo", name="/open") as connection:
                connection.send("one")
                connection.receive()
                connection.receive()
    """
    with echoing() as (url, handshakes):
        run = load(tmp_path, scenario, url, "-u", "1", "-t", "2s")
    streams = sorted(run.rows(STREAMS), key=lambda row: row["opened"])

    told = [(row["name"], row["messages"], row["code"], row["error"]) for row in streams]
    assert told == [
        ("WS /echo", 3, 1000, None),
        ("WS /closed-by-service", 0, 4000, None),
        ("WS /given-up", 0, None, "timeout"),
        ("WS /open", 1, None, "unfinished"),
    ]
    first = streams[0]
    assert first["opened"] < first["first"] < first["closed"]
    assert first["trace_id"][:8].hex() == run.meta["key"]
    for row, headers in zip(streams, handshakes, strict=True):
        assert parse_traceparent(headers["traceparent"]) == (row["trace_id"], row["span_id"], True)
        assert client_span_id(headers["tracestate"]) == row["span_id"]
    assert run.rows(CLIENT) == []


def test_jobs_are_watched_until_they_end_or_nothing_changes_any_more(target: Target, tmp_path: Path) -> None:
    scenario = """
    class Jobs(JobUser):
        wait_time = constant_pacing(0.02)
        count = 5
        patience = 0.5
        look_every = 0.05
    """
    run = load(tmp_path, scenario, target.url, "-u", "1")
    jobs = {row["job_id"]: row for row in run.rows(JOBS)}

    # The service of these tests finishes job 0 at once and job 1 at its third look, buries 2, and loses the others.
    assert [(jobs[str(number)]["state"], jobs[str(number)]["effects"]) for number in range(5)] == [
        ("finished", 1),
        ("finished", 1),
        ("dead", 0),
        ("running", 0),
        ("unknown", None),
    ]
    assert all((row["seen_finished"] is not None) == (row["state"] == "finished") for row in jobs.values())
    assert jobs["0"]["posted"] < jobs["0"]["seen_finished"] < jobs["1"]["seen_finished"]
    assert {row["stage"] for row in jobs.values()} == {"main"}
    assert {row["name"] for row in run.rows(CLIENT)} == {"POST /jobs", "GET /jobs"}
