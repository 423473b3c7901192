"""Worker, exporter and forwarder together: what the client did is in the run folder, request by request."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.forwarding import Forwarding
from timesplit.lab.forwarding import answers
from timesplit.lab.processes import Child, Processes, free_port
from timesplit.schema import SERVER, STREAMS
from timesplit.tracecontext import new_run_key, traceparent, tracestate

ENDED_GENTLY = (0, -signal.SIGTERM)  # uvicorn ends all in order, and then by the signal after all
pytestmark = pytest.mark.timeout(120)


@dataclass
class Attempt:
    """A request that the client made, and how it went."""

    trace_id: bytes
    span_id: bytes
    path: str
    status: int = 0

    def headers(self) -> dict[str, str]:
        return {
            "traceparent": traceparent(self.trace_id, self.span_id, sampled=True),
            "tracestate": tracestate(self.span_id),
        }


class Lab(Forwarding):
    """A run folder, a forwarder that writes it, and a service whose spans it gets."""

    def __init__(self, processes: Processes, root: Path) -> None:
        super().__init__(root, new_run_key())
        self.processes = processes
        self.service: Child | None = None
        self.endpoint = f"http://127.0.0.1:{free_port()}"  # nothing listens there, unless a test makes it

    def start_both(self, command: Sequence[str], **environment: str) -> Child:
        self.endpoint = self.start()
        return self.start_service(command, **environment)

    def start_service(self, command: Sequence[str], **environment: str) -> Child:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.service = self.processes.start(
            "service-under-test",
            [sys.executable, "-m", *(word.format(port=port) for word in command)],
            env={
                "TIMESPLIT_TRACES": "otel",
                "OTEL_SERVICE_NAME": "traced",
                "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
                "PYTHONPATH": os.getcwd(),
                **environment,
            },
        )
        self.service.wait_ready(lambda: answers(f"{self.url}/healthz"))
        return self.service

    def attempt(self, path: str) -> Attempt:
        return Attempt(self.run.key + os.urandom(8), os.urandom(8), path)

    async def get(self, paths: Sequence[str], connections: int = 10) -> list[Attempt]:
        """Get the paths, some at once, each with headers of its own."""
        # New connections: uvicorn closes one after an exception, maybe when it is just being used again.
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self.url, limits=limits, timeout=30) as client:

            async def one(path: str) -> Attempt:
                attempt = self.attempt(path)
                answer = await client.get(path, headers=attempt.headers())
                attempt.status = answer.status_code
                return attempt

            return await asyncio.gather(*map(one, paths))

    def stop_service(self) -> None:
        """Stop the service gently, in the time that the lab gives it."""
        assert self.service
        assert self.processes.stop(self.service, 9) in ENDED_GENTLY
        self.service = None

    def stop_both(self) -> None:
        """Stop the service, then the forwarder."""
        self.stop_service()
        self.stop()


@pytest.fixture
def lab(processes: Processes, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(processes, tmp_path)
    yield lab
    if lab.service:
        processes.stop(lab.service)
    lab.stop()


def uvicorn(loop: str = "uvloop") -> list[str]:
    return ["uvicorn", "--factory", "tests.traced_app:create_app", "--port", "{port}", "--loop", loop]


def gunicorn(workers: int) -> list[str]:
    return [
        *("gunicorn", "-k", "uvicorn_worker.UvicornWorker", "--preload", "--no-control-socket"),
        *("--workers", str(workers), "--bind", "127.0.0.1:{port}", "tests.traced_app:create_app()"),
    ]


PATHS = ["/numbers/7", "/sync", "/raises", "/nowhere", "/numbers/x"]
ROUTES = {
    "/numbers/7": ("/numbers/{number}", 200, "response"),
    "/sync": ("/sync", 200, "response"),
    "/raises": ("/raises", 500, "exception"),
    "/nowhere": (None, 404, "response"),
    "/numbers/x": ("/numbers/{number}", 422, "response"),
}


def check_rows(lab: Lab, attempts: list[Attempt]) -> None:
    """See that each attempt has its row, and nothing else is there."""
    rows = lab.rows(SERVER)
    assert Counter(
        (row["trace_id"], row["parent_span_id"], row["client_span_id"]) for row in rows
    ) == Counter((attempt.trace_id, attempt.span_id, attempt.span_id) for attempt in attempts)
    by_trace = {row["trace_id"]: row for row in rows}
    for attempt in attempts:
        row = by_trace[attempt.trace_id]
        route, status, ended_by = ROUTES[attempt.path]
        assert attempt.status == row["status"] == status
        assert (row["http_route"], row["ended_by"], row["method"]) == (route, ended_by, "GET")
        assert row["started"] < row["ended"]


def check_numbers(lab: Lab) -> None:
    """See that the workers' numbers have no gap, the unmarked requests included."""
    by_worker: dict[str, list[int]] = {}
    for row in lab.rows(SERVER) + lab.rows(SERVER, lab.root / "unclaimed"):
        by_worker.setdefault(row["instance"], []).append(row["seq"])
    for seqs in by_worker.values():
        assert sorted(seqs) == list(range(len(seqs)))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_each_request_has_its_row_and_no_number_is_missing(lab: Lab, loop: str) -> None:
    service = lab.start_both(uvicorn(loop))
    attempts = await lab.get(PATHS * 40)
    lab.stop_both()

    check_rows(lab, attempts)
    check_numbers(lab)
    (worker,) = lab.hosts("worker")
    assert (worker["written"], worker["forwarded"], worker["dropped"]) == (200, 200, 0)
    assert (worker["service"], worker["pid"]) == ("traced", service.pid)
    (me,) = lab.hosts("forwarder")
    assert (me["written"], me["forwarded"], me["dropped"], me["pid"]) == (200, 200, 0, lab.pid)
    assert worker["boot_id"] == me["boot_id"]


async def test_workers_that_are_forked_after_the_application_was_made_number_each_for_itself(
    lab: Lab,
) -> None:
    lab.start_both(gunicorn(workers=2))
    attempts = []
    for _ in range(20):  # with new connections each time, so that both get some
        attempts += await lab.get(PATHS * 2)
    lab.stop_both()

    check_rows(lab, attempts)
    check_numbers(lab)
    workers = lab.hosts("worker")
    assert len({worker["pid"] for worker in workers}) == len(workers) == 2
    assert sum(worker["forwarded"] for worker in workers) == len(attempts)
    assert [worker["dropped"] for worker in workers] == [0, 0]


async def test_times_are_those_of_the_clients_clock(lab: Lab) -> None:
    lab.start_both(uvicorn())
    await lab.get(["/sync"])
    sent = time.monotonic_ns()
    await lab.get(["/numbers/7"])
    done = time.monotonic_ns()
    lab.stop_both()

    (row,) = (row for row in lab.rows(SERVER) if row["http_route"] == "/numbers/{number}")
    drift = 2_000_000  # spans hold UTC, which is steered while the monotonic clock is not
    assert sent - drift < row["started"] < row["ended"] < done + drift
    assert row["ended"] - row["started"] >= 1_000_000


async def test_spans_that_the_worker_drops_are_counted(lab: Lab) -> None:
    # A queue of 8, looked into once a minute: most spans of a burst are dropped.
    lab.start_both(
        uvicorn(),
        OTEL_BSP_MAX_QUEUE_SIZE="8",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="8",
        OTEL_BSP_SCHEDULE_DELAY="60000",
        OTEL_EXPORTER_OTLP_TRACES_COMPRESSION="gzip",
    )
    attempts = await lab.get(["/numbers/7"] * 300, connections=50)
    lab.stop_both()

    rows = lab.rows(SERVER)
    (worker,) = lab.hosts("worker")
    assert len(rows) < len(attempts)
    assert worker["forwarded"] == len(rows)
    # The requests by which the service was seen to be ready are lost as well, and no run knows them.
    assert len(attempts) <= worker["written"] <= len(attempts) + 3
    assert worker["dropped"] == worker["written"] - worker["forwarded"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_kept_alive_connection_does_not_make_one_request_the_child_of_another(lab: Lab, loop: str) -> None:
    lab.start_both(uvicorn(loop))
    attempts = []
    with httpx.Client(base_url=lab.url, timeout=30) as client:
        for _ in range(3):
            attempts.append(posted := lab.attempt("/body"))
            assert client.post("/body", content=bytes(1 << 20), headers=posted.headers()).json() == 1 << 20
            attempts.append(got := lab.attempt("/sync"))
            client.get("/sync", headers=got.headers())
    lab.stop_both()

    assert [(row["trace_id"], row["parent_span_id"]) for row in lab.rows(SERVER)] == [
        (attempt.trace_id, attempt.span_id) for attempt in attempts
    ]


async def test_streams_are_recorded_as_such(lab: Lab) -> None:
    lab.start_both(uvicorn())
    (events,) = await lab.get(["/events"])
    talk = lab.attempt("/echo")
    with connect(f"{lab.url.replace('http', 'ws')}/echo", additional_headers=talk.headers()) as socket:
        for word in ("a", "b"):
            socket.send(word)
            assert socket.recv() == word
    lab.stop_both()

    (row,) = lab.rows(SERVER)
    streams = {stream["kind"]: stream for stream in lab.rows(STREAMS)}
    assert (row["trace_id"], row["ended"]) == (events.trace_id, streams["sse"]["first"])
    assert streams["sse"]["messages"] == 3
    # Not the 50 ms after the last event: it is the last byte that the span sees, not the last word.
    assert streams["sse"]["closed"] - streams["sse"]["first"] >= 100_000_000
    websocket = streams["websocket"]
    assert (websocket["trace_id"], websocket["messages"], websocket["code"]) == (talk.trace_id, 2, 1000)
    assert (websocket["side"], websocket["name"], websocket["error"]) == ("server", "/echo", None)


def test_an_event_stream_that_the_client_leaves_ends_by_disconnect(lab: Lab) -> None:
    lab.start_both(uvicorn())
    with httpx.stream(
        "GET", f"{lab.url}/events?seconds=0.3", headers=lab.attempt("/events").headers()
    ) as answer:
        next(answer.iter_bytes())
    lab.stop_both()

    assert [row["ended_by"] for row in lab.rows(SERVER)] == ["disconnect"]


@contextmanager
def upstream(behave: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server that behaves as told; its URL."""

    class Handler(BaseHTTPRequestHandler):
        do_GET = do_POST = behave

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer_ok(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


async def test_calls_to_database_cache_and_upstream_are_counted_and_timed(
    lab: Lab, postgres: str, valkey: str
) -> None:
    with upstream(answer_ok) as url:
        lab.start_both(uvicorn(), DATABASE_URL=postgres, CACHE_URL=valkey, UPSTREAM_URL=url)
        attempt = lab.attempt("/calls")
        async with httpx.AsyncClient() as client:
            taken = (await client.get(f"{lab.url}/calls", headers=attempt.headers())).json()
        (quiet,) = await lab.get(["/sync"])
        lab.stop_both()

    rows = {row["trace_id"]: row for row in lab.rows(SERVER)}
    row = rows[attempt.trace_id]
    assert (row["query_count"], row["upstream_count"]) == (2, 2)
    assert 50_000_000 < row["query_ns"] < taken["query"] * 1e9 + 20_000_000
    assert 0 < row["cache_ns"] < taken["cache"] * 1e9
    assert 0 < row["upstream_ns"] < (taken["httpx"] + taken["requests"]) * 1e9
    assert row["query_ns"] + row["cache_ns"] + row["upstream_ns"] < row["ended"] - row["started"]
    assert (row["loop_ns"], row["pool_wait_ns"], row["route_ns"]) == (None, None, None)
    nothing = rows[quiet.trace_id]
    assert [nothing[name] for name in ("query_ns", "query_count", "cache_ns", "upstream_ns")] == [0, 0, 0, 0]


def test_a_dead_forwarder_does_not_hold_up_the_service(lab: Lab) -> None:
    lab.start_service(uvicorn())
    assert httpx.get(f"{lab.url}/sync").status_code == 200
    lab.stop_service()


def test_a_forwarder_that_never_answers_does_not_hold_up_the_end_of_a_worker(lab: Lab) -> None:
    release = Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        release.wait(60)

    with upstream(hang) as lab.endpoint:
        lab.start_service(uvicorn())
        assert httpx.get(f"{lab.url}/sync").status_code == 200
        lab.stop_service()
        release.set()


async def test_what_a_forwarder_that_is_late_missed_is_exported_again(lab: Lab) -> None:
    lab.start_service(uvicorn())
    attempts = await lab.get(["/numbers/7"] * 20)
    lab.start(port=int(lab.endpoint.rpartition(":")[2]))
    await asyncio.sleep(3)
    lab.stop_both()

    check_rows(lab, attempts)
