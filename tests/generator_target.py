"""A service for the generator to load, with known answers, and Locust as a process of its own.

The service is written on bare sockets, so that what it does to a connection is what the test says. Locust never
runs in the tests' own process: it monkey-patches the standard library.
"""

import asyncio
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from timesplit.runfolder import RunFolder
from timesplit.schema import Table

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01")


@dataclass(frozen=True)
class Seen:
    """A request as the service saw it; `at` is CLOCK_MONOTONIC ns, `connection` a number."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int
    at: int

    @property
    def ids(self) -> tuple[bytes, bytes]:
        """Trace id and span id of its `traceparent`."""
        found = _TRACEPARENT.fullmatch(self.headers["traceparent"])
        assert found, self.headers["traceparent"]
        return bytes.fromhex(found[1]), bytes.fromhex(found[2])


@dataclass
class Target:
    """The service. Use it in a `with` block."""

    seen: list[Seen] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._connections = self._looks = self._posted = 0
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _close(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request = await _read(head, reader, number)
                self.seen.append(request)
                path, _, query = request.path.partition("?")
                answer = self._jobs if path == "/jobs" else _ANSWERS.get(path, _ANSWERS["/missing"])
                if not await answer(writer, query):
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _jobs(self, writer: asyncio.StreamWriter, query: str) -> bool:
        """Take a job, or tell their states: 0 is finished at once, 1 at the third look, 2 dies, 3 never ends."""
        if query:
            self._looks += 1
            states = ["finished", "finished" if self._looks >= 3 else "running", "dead", "running"]
            jobs = [
                {"job_id": str(number), "state": state, "attempts": 1, "effects": int(state == "finished")}
                for number, state in enumerate(states)
            ]
            writer.write(_answer(200, json.dumps(jobs).encode()))
        else:
            writer.write(_answer(202, json.dumps({"job_id": str(self._posted)}).encode()))
            self._posted += 1
        return True


async def _read(head: bytes, reader: asyncio.StreamReader, connection: int) -> Seen:
    at = time.monotonic_ns()
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(method, path, headers, body, connection, at)


def _answer(status: int, body: bytes = b'{"hello": "you"}', *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


def _fixed(*pieces: bytes | float) -> Callable[[asyncio.StreamWriter, str], Coroutine[Any, Any, bool]]:
    """Return an answer made of bytes to write and seconds to wait."""

    async def answer(writer: asyncio.StreamWriter, _: str) -> bool:
        for piece in pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                writer.write(piece)
                await writer.drain()
        return True

    return answer


async def _slow(writer: asyncio.StreamWriter, seconds: str) -> bool:
    await asyncio.sleep(float(seconds))
    writer.write(_answer(200))
    return True


async def _reset(writer: asyncio.StreamWriter, _: str) -> bool:
    peer: socket.socket = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def _half(writer: asyncio.StreamWriter, _: str) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
    await writer.drain()
    await asyncio.sleep(0.02)
    return False


async def _until_close(writer: asyncio.StreamWriter, _: str) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    await writer.drain()
    return False


_EVENT_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


_IMPORTS = """import gevent, time
from locust import constant, constant_pacing, events, task
from timesplit.loadgen import BurstUser, FastHttpUser, JobUser
"""
_EVENTS = (
    ": heartbeat\n\n",
    "data: one\n\n",
    "event: x\ndata: two\n",
    "data: lines\n\n",
    "data: three\r\n\r\n",
)
_ANSWERS = {
    "/ok": _fixed(_answer(200)),
    "/missing": _fixed(_answer(404, b"")),
    "/broken": _fixed(_answer(500, b"")),
    "/redirect": _fixed(0.05, _answer(302, b"over there", "location: /ok")),
    "/hints": _fixed(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", 0.05, _answer(200)),
    "/drip": _fixed(b"HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n", 0.05, b"x" * 10, 0.05, b"x" * 20),
    "/slow": _slow,
    "/reset": _reset,
    "/half": _half,
    "/close": _fixed(_answer(200, b"{}", "connection: close")),
    "/until-close": _until_close,
    "/events": _fixed(
        _EVENT_HEAD, *(piece for text in _EVENTS for piece in (0.05, _chunk(text))), 0.05, b"0\r\n\r\n"
    ),
}


class Generator:
    """Locust as a process of its own. Use it in a `with` block: nothing of it survives that."""

    def __init__(
        self, folder: Path, locustfile: Path, target: str, *arguments: str, **environment: str
    ) -> None:
        """Prepare it.

        Args:
            folder: where it runs, and leaves `runs` with the records.
            locustfile: a locustfile, or a folder of them.
            target: URL of the service.
            arguments: further arguments.
            environment: further environment.
        """
        self.runs, self._folder = folder / "runs", folder
        self._command = [sys.executable, "-m", "locust", "-f", str(locustfile), "--host", target, *arguments]
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("TIMESPLIT", "OTEL"))
        }
        self._environment = {
            **inherited,
            "TIMESPLIT_RUNS": str(self.runs),
            "TIMESPLIT_WARMUP": "0",
            **environment,
        }

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command,
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(ValueError):  # somebody has read its output already
            self.process.communicate()

    def finish(self, timeout: float = 40, *, exit_code: int = 0) -> "Run":
        """Wait until it has ended by itself, and return its run."""
        output, _ = self.process.communicate(timeout=timeout)
        assert self.process.returncode == exit_code, output
        return Run(self.runs / "latest", output)


@dataclass
class Run:
    """What a generator has left."""

    path: Path
    output: str = ""

    @property
    def meta(self) -> dict[str, Any]:
        return RunFolder.open(self.path).meta()

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """Return the rows of a table."""
        files = RunFolder.open(self.path).files(table)
        return pa.concat_tables(pq.read_table(file) for file in files).to_pylist() if files else []


def scenario(folder: Path, text: str, target: str, *arguments: str, **environment: str) -> Generator:
    """Return Locust, headless, with a locustfile of this text, without the imports that nearly all need."""
    file = folder / "scenario.py"
    file.write_text(_IMPORTS + textwrap.dedent(text))
    headless = ("--headless", "--only-summary", "--exit-code-on-error", "0")
    return Generator(folder, file, target, *headless, *arguments, **environment)


def load(folder: Path, text: str, target: str, *arguments: str, **environment: str) -> Run:
    """Run such a locustfile to its end."""
    with scenario(folder, text, target, *arguments, **environment) as generator:
        return generator.finish()


def free_port() -> str:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def processes(number: int) -> list[str]:
    """Return Locust's arguments for several processes, on a port that is no other Locust's."""
    port = free_port()
    return ["--processes", str(number), "--master-bind-port", port, "--master-port", port]


def wait_for(what: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until it is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.05)


def named(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the rows of a request name, in the order in which they were due."""
    return sorted((row for row in rows if row["name"] == name), key=lambda row: row["intended"])


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
