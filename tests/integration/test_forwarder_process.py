"""The forwarder as a process: what it answers, what it writes, and what it passes on."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.forwarding import Forwarding
from tests.otlp_spans import KEY, query_span, request_of, server_span
from timesplit.lab.forwarding import answers
from timesplit.lab.processes import Child, Processes, free_port

pytestmark = pytest.mark.timeout(60)

PROTOBUF = {"Content-Type": "application/x-protobuf"}
BODY_BYTES = 16 << 20


class Alone(Forwarding):
    """A forwarder whose only client is the test."""

    def post(self, body: bytes, path: str = "/v1/traces", **headers: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(
            "POST", path, body, {**PROTOBUF, **{k.replace("_", "-"): v for k, v in headers.items()}}
        )
        answer = connection.getresponse()
        said = answer.read().decode()
        connection.close()
        return answer.status, said


@pytest.fixture
def forwarder(tmp_path: Path) -> Iterator[Alone]:
    forwarder = Alone(tmp_path, KEY)
    yield forwarder
    forwarder.stop()


def start(processes: Processes, root: Path) -> tuple[Child, int]:
    """Start a forwarder as a process; it, and its port."""
    command = [
        sys.executable,
        "-m",
        "timesplit.forwarder",
        "--port",
        str(port := free_port()),
        "--runs",
        str(root),
    ]
    child = processes.start("forwarder-alone", command)
    child.wait_ready(lambda: answers(f"http://127.0.0.1:{port}/healthz"))
    return child, port


def body(*spans: Span) -> bytes:
    data: bytes = request_of(*(spans or [server_span()])).SerializeToString()
    return data


def numbered(seq: int) -> Span:
    return server_span(seq.to_bytes(8, "big"), trace_id=KEY + os.urandom(8), seq=seq)


def test_what_comes_is_on_disk_within_five_seconds(forwarder: Alone) -> None:
    forwarder.start()
    assert forwarder.post(body(query_span(b"span...1", 0, 1), server_span())) == (200, "")
    deadline = time.monotonic() + 5
    while not forwarder.rows():
        assert time.monotonic() < deadline
        time.sleep(0.1)

    (row,) = forwarder.rows()
    assert (row["span_id"], row["query_count"]) == (b"server.1", 1)
    assert (forwarder.run.path / "server").stat().st_mode & 0o777 == 0o700


def test_compressed_or_not_is_the_same(forwarder: Alone) -> None:
    forwarder.start()
    assert forwarder.post(gzip.compress(body(numbered(1))), Content_Encoding="gzip")[0] == 200
    assert forwarder.post(body(numbered(2)))[0] == 200
    forwarder.stop()

    assert [row["seq"] for row in forwarder.rows()] == [1, 2]


def test_bad_input_is_refused_in_one_line(forwarder: Alone) -> None:
    forwarder.start()
    for expected, answer in [
        (404, forwarder.post(body(), path="/v1/profiles")),
        (415, forwarder.post(b"{}", Content_Type="application/json")),
        (415, forwarder.post(body(), Content_Encoding="br")),
        (400, forwarder.post(b"no protobuf")),
        (400, forwarder.post(b"no gzip", Content_Encoding="gzip")),
        (413, forwarder.post(bytes(BODY_BYTES + 1))),
        (413, forwarder.post(gzip.compress(bytes(BODY_BYTES + 1)), Content_Encoding="gzip")),
    ]:
        assert answer[0] == expected
        assert answer[1].count("\n") == 1
        assert answer[1].endswith("\n")
    assert forwarder.post(body())[0] == 200
    forwarder.stop()

    assert len(forwarder.rows()) == 1


def test_a_body_without_length_is_refused(forwarder: Alone) -> None:
    forwarder.start()
    with socket.create_connection(("127.0.0.1", forwarder.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/traces HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-protobuf\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        )
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.status == 411
        assert b"Content-Length" in answer.read()


def test_a_connection_is_used_again(forwarder: Alone) -> None:
    forwarder.start()
    connection = HTTPConnection("127.0.0.1", forwarder.port, timeout=10)
    statuses = []
    for data in (b"no protobuf", body(numbered(1)), body(numbered(2))):
        connection.request("POST", "/v1/traces", data, PROTOBUF)
        statuses.append((answer := connection.getresponse()).status)
        answer.read()
    connection.close()
    forwarder.stop()

    assert statuses == [400, 200, 200]
    assert len(forwarder.rows()) == 2


def test_what_an_exporter_sends_again_is_no_second_row(forwarder: Alone) -> None:
    forwarder.start()
    again = body(query_span(b"span...1", 0, 1), server_span())
    for _ in range(3):
        forwarder.post(again)
    forwarder.stop()

    (row,) = forwarder.rows()
    assert row["query_count"] == 1
    assert forwarder.configuration()["repeated"] == 4


def test_requests_that_no_run_marks_are_kept_apart(forwarder: Alone) -> None:
    forwarder.start()
    forwarder.post(body(server_span(trace_id=b"somebody's trace", client=None)))
    forwarder.stop()

    assert forwarder.rows() == []
    assert len(forwarder.rows(folder=forwarder.root / "unclaimed")) == 1


def test_metrics_and_logs_are_taken_where_nobody_wants_them(forwarder: Alone) -> None:
    forwarder.start()

    assert forwarder.post(b"anything", path="/v1/metrics") == (200, "")
    assert forwarder.post(b"anything", path="/v1/logs") == (200, "")


def test_nothing_that_was_taken_is_lost_at_the_end(forwarder: Alone) -> None:
    forwarder.start()
    taken: list[int] = []

    def post_on(worker: int) -> None:
        for i in range(10_000):
            seq = worker * 10_000 + i + 1
            try:
                if forwarder.post(body(numbered(seq)))[0] != 200:
                    return
            except OSError:
                return
            taken.append(seq)

    posting = [Thread(target=post_on, args=(worker,)) for worker in range(4)]
    for thread in posting:
        thread.start()
    time.sleep(1)
    forwarder.stop()
    for thread in posting:
        thread.join()

    assert len(taken) > 100
    # One more for each sender can be written whose answer did not get through.
    written = {row["seq"] for row in forwarder.rows()}
    assert set(taken) <= written
    assert len(written) <= len(taken) + len(posting)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_writes_all_and_ends_by_a_signal_whoever_is_connected(
    processes: Processes, tmp_path: Path, number: int
) -> None:
    forwarding = Alone(tmp_path, KEY)
    child, forwarding.port = start(processes, tmp_path)
    with socket.create_connection(("127.0.0.1", forwarding.port)):
        assert forwarding.post(body())[0] == 200
        child.signal(number)
        assert child.wait(5) == 0

    assert len(forwarding.rows()) == 1
    assert [row["pid"] for row in forwarding.hosts("forwarder")] == [child.pid]


def test_a_port_in_use_is_said_in_one_line(forwarder: Alone) -> None:
    forwarder.start()
    command = [
        sys.executable,
        "-m",
        "timesplit.forwarder",
        "--port",
        str(forwarder.port),
        "--runs",
        "/nowhere/to/be",
    ]
    second = subprocess.run(command, capture_output=True, text=True, timeout=20)

    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert f"127.0.0.1:{forwarder.port}" in second.stderr


def test_a_folder_that_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "timesplit.forwarder", "--port", "0", "--runs", str(tmp_path / "file")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=20)

    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert str(tmp_path / "file") in refused.stderr


@dataclass
class Collector:
    """Stands where spans are passed on to."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)  # of the next answers; then 200
    hangs: bool = False
    got: list[tuple[str, str | None, bytes]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    end: Event = field(default_factory=Event)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.hangs:
                collector.end.wait(30)
            status = collector.statuses.pop(0) if collector.statuses else 200
            if status == 200:
                collector.got.append((self.path, self.headers.get("Content-Encoding"), data))
                collector.headers = dict(self.headers)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    yield collector
    collector.end.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_comes_is_passed_on_as_it_came(
    forwarder: Alone, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2")
    forwarder.start()
    plain, packed = body(numbered(1)), gzip.compress(body(numbered(2), numbered(3)))
    forwarder.post(plain)
    forwarder.post(packed, Content_Encoding="gzip")
    forwarder.post(b"measured", path="/v1/metrics")
    forwarder.post(b"no protobuf")
    forwarder.stop()

    assert collector.got == [
        ("/v1/traces", None, plain),
        ("/v1/traces", "gzip", packed),
        ("/v1/metrics", None, b"measured"),
    ]
    assert {name.lower(): value for name, value in collector.headers.items()}[
        "authorization"
    ] == "Bearer hunter2"
    told = forwarder.configuration()
    assert (told["passed_on"], told["pass_on_dropped"]) == (4, 0)
    assert "hunter2" not in json.dumps(told)


def test_a_collector_that_is_busy_is_asked_again(
    forwarder: Alone, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.statuses = [503, 429]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/traces")
    forwarder.start()
    forwarder.post(body(numbered(1)))
    deadline = time.monotonic() + 10
    while not collector.got:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    forwarder.stop()

    assert [path for path, _, _ in collector.got] == ["/traces"]
    assert forwarder.configuration()["passed_on"] == 1


def test_what_a_collector_does_not_want_is_dropped_and_counted(
    forwarder: Alone, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.statuses = [400]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    forwarder.start()
    forwarder.post(body(numbered(1), numbered(2)))
    forwarder.post(body(numbered(3)))
    forwarder.stop()

    told = forwarder.configuration()
    assert (told["passed_on"], told["pass_on_dropped"]) == (1, 2)
    assert len(forwarder.rows()) == 3


@pytest.mark.parametrize("way", ["dead", "hanging"])
def test_a_collector_that_is_no_help_delays_nobody(
    forwarder: Alone, collector: Collector, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    collector.hangs = True
    url = collector.url if way == "hanging" else f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    forwarder.start()
    slowest = 0.0
    for seq in range(50):
        begun = time.monotonic()
        assert forwarder.post(body(numbered(seq)))[0] == 200
        slowest = max(slowest, time.monotonic() - begun)
    begun = time.monotonic()
    forwarder.stop()
    stopped = time.monotonic() - begun

    assert slowest < 1.0  # an attempt to pass on takes 10 s
    assert stopped < 9.0
    assert len(forwarder.rows()) == 50
    told = forwarder.configuration()
    assert (told["passed_on"], told["pass_on_dropped"]) == (0, 50)
