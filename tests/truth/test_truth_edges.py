"""Where a request begins and ends, and what becomes of it, against instants that its client stamps."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.journal_reader import Account
from tests.truth.served import (
    ASYNCIO,
    GUNICORN_ASGI,
    JIFFY_MS,
    MS,
    UVLOOP,
    Server,
    Service,
    encode,
    name,
    read_answer,
    retried,
    serve,
    until,
)

TRACE = "{:032x}"


def only(service: Service, trace: str) -> Account:
    """Return a request's record, of which there is one."""
    account = service.account(trace)
    found = [a for worker in service.workers() for a in worker.requests if trace in a.traceparent]
    assert len(found) == 1
    return account


@retried
def test_a_connection_that_the_worker_did_not_accept_waits_in_the_queue(plain: Service) -> None:
    blocker: list[int] = []

    def block() -> None:
        blocker.append(int(plain.get("/blocking?seconds=0.35").json["end"]))

    thread = threading.Thread(target=block)
    thread.start()
    time.sleep(0.1)
    answer = plain.get("/quick")
    thread.join()
    account = plain.account(answer)
    waited = (blocker[0] - answer.sent) / MS
    assert account.ms("accept") == pytest.approx(waited, abs=JIFFY_MS + 2)
    assert account.ms("read") < JIFFY_MS + 2
    blamed = plain.blamed(account, account.begin, account.started)
    assert sum(ms for place, ms in blamed.items() if place.endswith("blocking")) > 0.9 * waited


@retried
def test_data_on_an_open_connection_wait_to_be_read(plain: Service) -> None:
    with plain.connect() as connection:
        plain.get("/quick", connection)
        blocker: list[int] = []
        thread = threading.Thread(
            target=lambda: blocker.append(int(plain.get("/blocking?seconds=0.2").json["end"]))
        )
        thread.start()
        time.sleep(0.05)
        answer = plain.get("/quick", connection)
        thread.join()
    account = plain.account(answer)
    assert account.ms("read") == pytest.approx((blocker[0] - answer.sent) / MS, abs=JIFFY_MS + 1)
    assert account.ms("accept") == 0
    assert account.begin == pytest.approx(answer.sent, abs=(JIFFY_MS + 1) * MS)


@retried
def test_a_slow_reader_makes_the_response_wait(plain: Service) -> None:
    size, pieces = 24_000_000, 24
    trace = TRACE.format(0x12000 + time.monotonic_ns())
    left: list[tuple[int, int]] = []
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", plain.port))
        connection.sendall(encode("GET", "/big", trace))
        got = 0
        while got < size:
            goal = got + size // pieces
            while got < min(goal, size):
                got += len(connection.recv(1 << 20))
            left.append((time.monotonic_ns(), size - got))
            time.sleep(0.015)
    account = only(plain, trace)
    # When the last byte went to the kernel, what was unread fitted into the kernel's buffers, and before, it did not.
    buffers = 8_000_000
    earliest = next(at for at, unread in left if unread < buffers)
    assert earliest <= account.ended <= left[-1][0]
    assert account.ms("send") > 0.8 * (earliest - account.started) / MS
    assert account.ended - account.longest("send").end < 5 * MS


@retried
def test_a_client_that_is_slow_to_send_is_waited_for(plain: Service) -> None:
    trace = TRACE.format(0x13000 + time.monotonic_ns())
    request = encode("POST", "/upload", trace, b"x" * 2000)
    with plain.connect() as connection:
        connection.sendall(request[:-1000])
        time.sleep(0.1)
        sent = time.monotonic_ns()
        connection.sendall(request[-1000:])
        status, _ = read_answer(connection)
    account = only(plain, trace)
    assert (status, account.status) == (200, 200)
    assert account.ms("receive") == pytest.approx((sent - account.started) / MS, abs=3)
    assert account.ms("receive") > 80


@retried
def test_headers_in_two_pieces_arrive_with_the_first(plain: Service) -> None:
    trace = TRACE.format(0x14000 + time.monotonic_ns())
    request = encode("GET", "/quick", trace)
    with plain.connect() as connection:
        plain.get("/quick", connection)
        sent = time.monotonic_ns()
        connection.sendall(request[:40])
        time.sleep(0.06)
        connection.sendall(request[40:])
        read_answer(connection)
    account = only(plain, trace)
    assert account.begin == pytest.approx(sent, abs=(JIFFY_MS + 1) * MS)
    assert account.ms("receive") == pytest.approx(60, abs=JIFFY_MS + 2)


@retried
def test_a_client_that_leaves_ends_its_request(plain: Service) -> None:
    trace = TRACE.format(0x17000 + time.monotonic_ns())
    with plain.connect() as connection:
        connection.sendall(encode("GET", "/sleep?seconds=0.4", trace))
        time.sleep(0.1)
        left = time.monotonic_ns()
    account = only(plain, trace)
    assert account.ended_by == "disconnect"
    assert account.ended == pytest.approx(left, abs=20 * MS)
    assert account.ms("other_wait") == pytest.approx(100, abs=25)


@pytest.mark.parametrize(
    ("path", "route", "status"),
    [
        ("/typed/7", "/typed/{number}", 200),
        ("/typed/seven", "/typed/{number}", 422),
        ("/nowhere", "", 404),
        ("/sub/things/1", "/sub/things/{thing}", 200),
        ("/of/somebody/plain", "/of/{tenant}/plain", 200),
        ("/raise", "/raise", 500),
    ],
)
def test_each_request_has_one_record_with_its_route(
    plain: Service, path: str, route: str, status: int
) -> None:
    answer = plain.get(path)
    account = only(plain, answer.trace)
    assert answer.status == status
    assert (account.route, account.status, account.method) == (route, status, "GET")
    assert account.ended_by == ("exception" if path == "/raise" else "response")


def test_an_old_protocol_and_other_methods_are_requests_too(plain: Service) -> None:
    old, head = TRACE.format(0x18000 + time.monotonic_ns()), TRACE.format(0x19000 + time.monotonic_ns())
    for trace, method, version in ((old, "GET", "1.0"), (head, "OPTIONS", "1.1")):
        with plain.connect() as connection:
            request = encode(method, "/quick", trace, keep=False)
            connection.sendall(request.replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
            read_answer(connection)
        account = only(plain, trace)
        assert (account.method, account.route) == (method, "/quick")
        assert account.ended_by == "response"


@retried
def test_a_pipelined_request_waits_for_the_one_before(plain: Service) -> None:
    first, second = (TRACE.format(n + time.monotonic_ns()) for n in (0x20000, 0x30000))
    with plain.connect() as connection:
        plain.get("/quick", connection)
        connection.sendall(
            encode("GET", "/sleep?seconds=0.1", first) + encode("GET", "/quick", second, keep=False)
        )
        time.sleep(0.3)
        data = b""
        while more := connection.recv(65536):
            data += more
    assert data.count(b"HTTP/1.1 200") == 2
    one, two = only(plain, first), only(plain, second)
    assert two.begin == pytest.approx(one.begin, abs=JIFFY_MS * MS)
    waits = [segment for segment in two.segments if segment.label == "pipelined"]
    assert sum(s.end - s.start for s in waits) / MS == pytest.approx((one.ended - one.started) / MS, abs=3)
    assert two.other == "pipelined"


def test_an_event_stream_is_answered_with_its_first_event(plain: Service) -> None:
    answer = plain.get("/events?count=4&seconds=0.05")
    events = [line.split() for line in answer.body.splitlines() if line.startswith(b"data:")]
    account = only(plain, answer.trace)
    first = int(events[0][2])
    assert account.ended_by == "response"
    assert first < account.ended < first + 20 * MS
    stream = until(lambda: _stream(plain, answer.trace), "no record of the stream")
    assert (stream["what"], stream["messages"], stream["route"]) == (1, 4, "/events")
    assert stream["first"] == account.ended
    assert stream["closed"] - stream["first"] > 150 * MS
    assert stream["number"] == account.number


def test_a_websocket_is_a_stream_and_no_request(plain: Service) -> None:
    trace = TRACE.format(0x40000 + time.monotonic_ns())
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    with connect(f"ws://127.0.0.1:{plain.port}/echo/x", additional_headers=headers) as client:
        for number in range(3):
            client.send(str(number))
            assert client.recv() == f"x{number}"
    stream = until(lambda: _stream(plain, trace), "no record of the stream")
    assert (stream["what"], stream["messages"], stream["route"]) == (0, 6, "/echo/{name}")
    assert stream["opened"] < stream["first"] < stream["closed"]
    assert stream["number"] < 0
    assert plain.find(trace, done=True) is None
    assert plain.find(trace, done=False) is None


def _stream(service: Service, trace: str) -> dict[str, Any] | None:
    return next((s for s in service.records("stream") if trace.encode() in s["traceparent"]), None)


@pytest.mark.parametrize("server", [UVLOOP, ASYNCIO], ids=name)
def test_a_trusted_proxy_tells_when_it_had_a_request(server: Server, tmp_path: Path) -> None:
    # TCP_INFO tells of the last hop; what the proxy says counts where that is unknown: here, a Unix socket.
    path = tmp_path / "socket"
    env = {"TIMESPLIT_TRUSTED_PROXIES": "unix"}
    with serve(
        "tests.truth.plain_routes:app", server, tmp_path, env=env, options={"uds": str(path)}
    ) as service:
        unknown = service.account(service.get("/quick"))
        assert (unknown.arrived, unknown.parts["accept"], unknown.parts["read"]) == (-1, None, None)
        stamps = {
            "s": f"t={time.time() - 0.05:.3f}",
            "ms": f"{(time.time() - 0.05) * 1e3:.0f}",
            "us": f"t={(time.time() - 0.05) * 1e6:.0f}",
        }
        for stamp in stamps.values():
            told = service.account(service.get("/quick", headers=[("X-Request-Start", stamp)]))
            assert 40 < told.ms("accept") + told.ms("read") < 150
            assert told.uncertain_ns / MS == pytest.approx(told.ms("accept") + told.ms("read"), abs=1)


@pytest.mark.parametrize("server", [UVLOOP, ASYNCIO], ids=name)
def test_requests_that_the_server_refuses_are_counted(server: Server, tmp_path: Path) -> None:
    with serve("tests.truth.plain_routes:app", server, tmp_path, options={"limit_concurrency": 4}) as service:
        before = len(service.workers()[0].requests)
        statuses = [answer.status for answer in service.burst("/sleep?seconds=0.2", 12)]
        refused = statuses.count(503)
        assert refused > 0
        (worker,) = service.workers()
        assert worker.header["refused"] == refused
        assert len(worker.requests) - before == statuses.count(200)


@pytest.fixture(scope="module", params=[GUNICORN_ASGI], ids=name)
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("workers")
    with serve("tests.truth.plain_routes:app", request.param, folder, workers=3) as service:
        yield service


def test_each_worker_has_a_journal(workers: Service) -> None:
    answers = workers.burst("/sleep", 30)
    assert len(workers.accounts(answers)) == 30
    pids = {worker.header["pid"] for worker in workers.workers()}
    assert len(pids) == len(workers.workers()) <= 3
