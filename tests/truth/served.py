"""An application in a real server process, driven over real sockets, with its accounts read back.

    with serve("tests.truth.plain_routes:app", UVLOOP, tmp_path) as service:
        answer = service.get("/sleep")
        account = service.account(answer)      # waits until the record is done
        assert account.segments ...
        answers = service.burst("/sleep", 20)  # at once, a connection each

Instants are CLOCK_MONOTONIC ns on both sides: routes stamp their own and answer them as JSON.
"""

import functools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.journal_reader import Account, Worker, read_workers
from timesplit.lab.processes import free_port

ROOT = Path(__file__).parents[2]
MS = 1_000_000
JIFFY_MS = 4.0
Headers = Sequence[tuple[str, str]]
T = TypeVar("T")


class Server(NamedTuple):
    """What serves, on which loop; `http` is uvicorn's protocol, or gunicorn's worker class."""

    server: str
    loop: str
    http: str


UVLOOP = Server("uvicorn", "uvloop", "httptools")
ASYNCIO = Server("uvicorn", "asyncio", "h11")
GUNICORN_ASGI = Server("gunicorn", "asyncio", "asgi")
GUNICORN_UVICORN = Server("gunicorn", "uvloop", "uvicorn_worker.UvicornWorker")


def name(server: Server) -> str:
    """Id of a test's parameter."""
    return "-".join(server)


@dataclass(frozen=True)
class Answer:
    """A request as the client saw it.

    Attributes:
        trace: the trace id that it sent, by which its account is found.
        sent: when the client began to connect, or to write on an open connection.
        done: when it had the last byte.
    """

    trace: str
    status: int
    body: bytes
    sent: int
    done: int

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Service:
    """A served application."""

    def __init__(self, process: subprocess.Popen[bytes], port: Any, journals: Path) -> None:
        self.process = process
        self.port = port
        self.journals = journals

    def connect(self) -> socket.socket:
        """Open a connection."""
        return connected(self.port)

    def get(self, path: str, connection: socket.socket | None = None, headers: Headers = ()) -> Answer:
        """Make a GET request, on a connection of its own unless one is given."""
        return self.request("GET", path, connection, headers=headers)

    def request(
        self,
        method: str,
        path: str,
        connection: socket.socket | None = None,
        body: bytes = b"",
        headers: Headers = (),
    ) -> Answer:
        """Make a request and read the whole answer."""
        trace = secrets.token_hex(16)
        sent = time.monotonic_ns()
        with closing(connection or self.connect()) if connection is None else _kept(connection) as open_one:
            open_one.sendall(encode(method, path, trace, body, connection is not None, headers))
            status, answer = read_answer(open_one)
        return Answer(trace, status, answer, sent, time.monotonic_ns())

    def burst(self, path: str, count: int) -> list[Answer]:
        """Make requests at once, on a connection and a thread each; the connections are open before."""
        connections = [self.connect() for _ in range(count)]
        together = threading.Barrier(count)
        answers: list[Answer] = []

        def one(connection: socket.socket) -> None:
            with closing(connection):
                together.wait()
                answers.append(self.get(path, connection))

        threads = [threading.Thread(target=one, args=(connection,)) for connection in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == count
        return answers

    def workers(self) -> list[Worker]:
        """Read all journals, as they are now."""
        return read_workers(self.journals)

    def account(self, answer: Answer | str, seconds: float = 5) -> Account:
        """Wait for the finished record of a request, given its answer or trace id, and return it.

        Its segments adjoin, its parts are not negative, and both sum to `ended - arrived`, or to
        `ended - started` where `arrived` is unknown: checked for each account that a test reads.
        """
        trace = answer if isinstance(answer, str) else answer.trace
        account = until(lambda: self.find(trace, done=True), f"no record of {trace}", seconds)
        check(account)
        return account

    def accounts(self, answers: list[Answer]) -> list[Account]:
        """Return the accounts of several requests, in order of their end."""
        return sorted((self.account(answer) for answer in answers), key=lambda account: account.ended)

    def find(self, trace: str, done: bool) -> Account | None:
        """Return a request's record, open or done, if it is there."""
        for worker in self.workers():
            for account in worker.requests:
                if trace in account.traceparent and account.done is done:
                    return account
        return None

    def blamed(self, account: Account, start: int, end: int) -> dict[str, float]:
        """Return what other requests' and tasks' long steps took of a stretch of time, in ms, by where they were."""
        found: dict[str, float] = {}
        for step in self.records("step"):
            ns = min(step["ended"], end) - max(step["started"], start)
            if ns > 0 and step["number"] != account.number:
                place = (
                    f"{Path(step['file']).name}:{step['line']} {step['function']}"
                    if step["file"]
                    else step["owner"]
                )
                found[place] = found.get(place, 0) + ns / MS
        return found

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Return all records of a kind: "step", "after", …"""
        return [record for worker in self.workers() for record in worker.records[kind]]


def check(account: Account) -> None:
    """Check that an account is an exact partition."""
    at = account.begin
    for segment in account.segments:
        assert segment.start == at, account.segments
        assert segment.end > segment.start
        at = segment.end
    assert at == max(account.ended, account.begin)
    for part, ns in account.parts.items():
        in_segments = sum(s.end - s.start for s in account.segments if s.part == part)
        assert (ns or 0) == in_segments, part
    assert account.total == account.ended - account.begin


def encode(
    method: str, path: str, trace: str, body: bytes = b"", keep: bool = True, headers: Headers = ()
) -> bytes:
    """Return the bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", f"traceparent: 00-{trace}-00f067aa0ba902b7-01"]
    lines += [f"{field}: {value}" for field, value in headers]
    lines += [f"Content-Length: {len(body)}"] if body else []
    lines += [] if keep else ["Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read one HTTP answer: status and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise ConnectionResetError(f"connection ended after {data!r}")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    fields = {
        key.strip().lower(): value.strip()
        for key, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    done = _body_end(fields)
    while not done(body):
        more = connection.recv(1 << 20)
        if not more:
            break
        body += more
    return int(head.split()[1]), body


def _body_end(fields: Mapping[bytes, bytes]) -> Callable[[bytes], bool]:
    if b"content-length" in fields:
        length = int(fields[b"content-length"])
        return lambda body: len(body) >= length
    if fields.get(b"transfer-encoding") == b"chunked":
        return lambda body: body.endswith(b"0\r\n\r\n")
    return lambda _: False


def retried(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test up to three times: a busy machine disturbs a measurement now and then, an error disturbs them all."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        for _ in range(2):
            try:
                return test(*args, **kwargs)
            except AssertionError:
                time.sleep(0.2)
        return test(*args, **kwargs)

    return run


@contextmanager
def _kept(connection: socket.socket) -> Iterator[socket.socket]:
    yield connection


def until(found: Callable[[], T | None], otherwise: str, seconds: float = 5) -> T:
    """Ask until the answer is not None."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = found()
        if value is not None:
            return value
        time.sleep(0.01)
    raise AssertionError(otherwise)


@contextmanager
def serve(
    app: str,
    server: Server,
    folder: Path,
    workers: int = 1,
    env: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
) -> Iterator[Service]:
    """Serve `module:app` on loopback, armed, with its journals under `folder`; end it afterwards.

    `options` are further ones of `uvicorn.run`; with `uds`, a Unix socket takes the port's place.
    """
    port, journals = free_port(), folder / "journals"
    command = [sys.executable, "-m", "tests.truth.serve", *server, str(workers), str(port), app]
    command.append(json.dumps(options or {}))
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    env = {**os.environ, **paths, "TIMESPLIT_JOURNAL": str(journals), **(env or {})}
    with serving(command, ROOT, env, (options or {}).get("uds") or port, journals) as service:
        yield service


@contextmanager
def serving(
    command: Sequence[str], folder: Path, env: Mapping[str, str], port: object, journals: Path
) -> Iterator[Service]:
    """Run a command that serves on a port or a Unix socket, with its journals in a folder; end it afterwards."""
    process = subprocess.Popen(command, cwd=folder, env=dict(env), start_new_session=True)
    try:
        until(lambda: _answers(process, port), f"{command} does not answer", 20)
        yield Service(process, port, journals)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(8)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def connected(port: Any) -> socket.socket:
    """Open a connection to a port, or to the path of a Unix socket."""
    if isinstance(port, int):
        return socket.create_connection(("127.0.0.1", port), timeout=20)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(20)
        connection.connect(port)
    except OSError:
        connection.close()
        raise
    return connection


def _answers(process: subprocess.Popen[bytes], port: object) -> bool | None:
    assert process.poll() is None, "the server ended"
    try:
        with connected(port) as connection:
            connection.sendall(encode("GET", "/ready", "0" * 32, keep=False))
            return read_answer(connection)[0] > 0
    except OSError:
        return None
