"""The wire: geventhttpclient's client, pool and response, with each attempt's instants stamped.

This is the lowest place that sees an attempt: below redirects, where each hop is one, and below the pool, so
that waiting for a connection of the generator's own is `late` and not the service's.
"""

import errno
import select
import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from time import monotonic_ns
from typing import IO, Any, Final

import gevent
import gevent.monkey
import gevent.socket
from geventhttpclient.client import HTTPClient, HTTPClientPool, _iter_chunked, _uses_chunked_transfer
from geventhttpclient.connectionpool import ConnectionPool, SSLConnectionPool
from geventhttpclient.response import HTTPParseError, HTTPSocketPoolResponse
from geventhttpclient.url import URL

from timesplit.loadgen.attempt import Attempt, current, error_of
from timesplit.loadgen.records import UNKNOWN
from timesplit.loadgen.streams import EventParser, Stream
from timesplit.tracecontext import traceparent, tracestate

_poll = gevent.monkey.get_original("select", "poll")  # gevent has one of its own, which switches
_BROKEN: Final = (errno.ECONNRESET, errno.EPIPE)
_TRACE_CONTEXT: Final = ("traceparent", "tracestate")
_WIRE_FAILURES: Final = (OSError, HTTPParseError, gevent.Timeout, gevent.GreenletExit)
_EVENT_STREAM: Final = "text/event-stream"

Body = str | bytes | bytearray | memoryview | IO[bytes] | Iterable[bytes] | None


class RecordingClientPool(HTTPClientPool):
    """Makes the clients of a user, one for each host and port."""

    def get_client(self, url: str | URL) -> HTTPClient:
        """Return the client for a URL's host, made when it is first asked for."""
        url = url if isinstance(url, URL) else URL(url)
        client = self.clients.get((url.host, url.port))
        if client is None:
            client = self.clients[url.host, url.port] = RecordingClient.from_url(url, **self.client_args)
        return client


class RecordingClient(HTTPClient):
    """Sends requests to one host. Never repeats one by itself: what the user would see is what is measured."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The base class makes its pool itself and has no hook for another class.
        self._connection_pool.__class__ = _SSLPool if self.ssl else _Pool

    def request(
        self, method: str, request_uri: str, body: Body = b"", headers: Any = None
    ) -> HTTPSocketPoolResponse:
        """Send a request and return its answer once the headers are there.

        Outside of a run, or where no call is known, nothing is recorded.
        """
        call = current.get()
        if call is None:
            return super().request(method, request_uri, body, headers)
        attempt = call.recorder.begin(call, method.upper())
        try:
            return self._attempt(attempt, request_uri, body, headers)
        except BaseException as failure:
            call.recorder.failed(attempt, error_of(failure))
            raise

    def _attempt(self, attempt: Attempt, uri: str, body: Any, headers: Any) -> HTTPSocketPoolResponse:
        head, payload = self._message(attempt, uri, body, headers)
        pool = self._connection_pool
        sock = pool.get_socket()
        try:
            self._write_when_due(attempt, partial(_write, attempt, sock, payload))
        except OSError as failure:
            # A server may answer and close before it has read a long body: its answer is what counts.
            if failure.errno not in _BROKEN:
                pool.release_socket(sock)
                raise
        except BaseException:
            pool.release_socket(sock)
            raise
        response = RecordedResponse(
            attempt,
            sock,
            pool,
            block_size=self.block_size,
            method=attempt.method,
            headers_type=self.headers_type,
        )
        response._sent_request = head
        return response

    def _write_when_due(self, attempt: Attempt, write: Callable[..., None]) -> None:
        gate, attempt.call.gate = attempt.call.gate, None
        if gate is None:
            write()
        else:
            gate.take_part(write)

    def _message(self, attempt: Attempt, uri: str, body: Any, headers: Any) -> tuple[str, Iterable[bytes]]:
        """Return the request's head, and all of it as the pieces to write."""
        headers = self.headers_type() if headers is None else headers
        for name in _TRACE_CONTEXT:
            if name in headers:
                del headers[name]
        body = body.encode() if isinstance(body, str) else b"" if body is None else body
        plain = isinstance(body, bytes) and "transfer-encoding" not in headers
        chunked = not plain and _uses_chunked_transfer(headers, body)
        head = self._build_request(attempt.method, uri, body=body, headers=headers, chunked=chunked)
        # Added to the text: two more headers in the mapping cost three times as much.
        head = f"{head[:-2]}{_trace_context(attempt)}\r\n"
        first = head.encode("latin-1")
        if isinstance(body, (bytes, bytearray, memoryview)) and not chunked:
            return head, (first + body,)
        rest = (
            _iter_chunked(body, self.block_size)
            if chunked
            else iter(partial(body.read, self.block_size), b"")
        )
        return head, chain((first,), rest)


def _trace_context(attempt: Attempt) -> str:
    trace_id = attempt.call.recorder.key + attempt.trace
    parent, state = traceparent(trace_id, attempt.span, sampled=True), tracestate(attempt.span)
    return f"traceparent: {parent}\r\ntracestate: {state}\r\n"


def _write(
    attempt: Attempt, sock: gevent.socket.socket, payload: Iterable[bytes], due: int | None = None
) -> None:
    """Write a request whose connection is at hand.

    Args:
        attempt: whose it is.
        sock: its connection.
        payload: its bytes.
        due: the instant of the burst that it is part of. Its connection was opened before, and is no part of it.
    """
    if due is not None or attempt.connect_ns == UNKNOWN:
        attempt.reused = int(attempt.connect_ns == UNKNOWN)
        attempt.intended = attempt.intended if due is None else due
        attempt.sent, attempt.connect_ns = monotonic_ns(), 0
    for piece in payload:
        sock.sendall(piece)


class _Timed(ConnectionPool):
    """A pool that tells the attempt when it opens a connection for it."""

    def _create_socket(self) -> gevent.socket.socket:
        call = current.get()
        if call is None or call.last is None:
            return super()._create_socket()
        attempt = call.last
        attempt.sent, attempt.reused = monotonic_ns(), 0
        sock = super()._create_socket()
        attempt.connect_ns = monotonic_ns() - attempt.sent
        return sock

    def _is_socket_alive(self, sock: gevent.socket.socket | None) -> bool:
        """Tell whether a connection that was idle is still open: then there is nothing to read from it.

        The base class asks gevent's `select`, which lets all other greenlets run first: the request would be
        late by as much.
        """
        if sock is None or sock.fileno() < 0:
            return False
        idle = _poll()
        idle.register(sock.fileno(), select.POLLIN)
        return not idle.poll(0)


class _Pool(_Timed):
    pass


class _SSLPool(_Timed, SSLConnectionPool):
    pass


class RecordedResponse(HTTPSocketPoolResponse):
    """An answer that stamps its attempt as it comes in.

    The parser calls the `_on_…` methods from within `feed`, at the instant at which the bytes are there.
    """

    def __init__(
        self, attempt: Attempt, sock: gevent.socket.socket, pool: ConnectionPool, **kwargs: Any
    ) -> None:
        # Before the base class, whose constructor already reads the headers.
        self.attempt = attempt
        self._received, self._at_end = 0, False
        self._stream: tuple[Stream, EventParser] | None = None
        super().__init__(sock, pool, **kwargs)

    def feed(self, data: str | bytes) -> None:
        """Parse what has come; nothing means that the other side has closed."""
        self._at_end = not data
        super().feed(data)

    def release(self) -> None:
        """Give the connection back, and end the attempt."""
        if self._sock is not None:
            self._end(sys.exception())
        super().release()

    def __del__(self) -> None:
        # An answer that is dropped before its end; the base class would not end the attempt.
        self.release()

    def _on_headers_complete(self) -> int | bool | None:
        self.attempt.first_byte = monotonic_ns()
        skip_body = super()._on_headers_complete()
        if str(self._headers_index.get("content-type")).startswith(_EVENT_STREAM):
            self._stream = self._open_stream(), EventParser()
        return skip_body

    def _on_body(self, buf: bytearray) -> None:
        super()._on_body(buf)
        self._received += len(buf)
        if self._stream is not None:
            self._on_events(*self._stream, bytes(buf))

    def _on_message_complete(self) -> None:
        if self.get_code() >= 200:
            super()._on_message_complete()
        else:
            # Only an interim answer: the base class would give the connection back while it still reads.
            self.message_complete = True

    def _open_stream(self) -> Stream:
        attempt = self.attempt
        recorder, name = attempt.call.recorder, attempt.call.name
        return recorder.open_stream(recorder.key + attempt.trace, attempt.span, name, "sse", attempt.sent)

    def _on_events(self, stream: Stream, parser: EventParser, data: bytes) -> None:
        # The first bytes are the answer, and settle the attempt: the verdict on it may be an hour away.
        self.attempt.call.judged = False
        self._answered()
        for _ in parser.feed(data):
            stream.message()

    def _end(self, failure: BaseException | None) -> None:
        """End the attempt: the answer is complete, or it broke, or nobody wants the rest of it."""
        recorder, error = self.attempt.call.recorder, None
        if not self.headers_complete:
            error = error_of(failure or HTTPParseError(), at_end=self._at_end)
            recorder.failed(self.attempt, error)
        elif not self.message_complete and isinstance(failure, _WIRE_FAILURES):
            error = error_of(failure, at_end=self._at_end)
            recorder.failed(self.attempt, error, self.get_code(), self._received)
        else:
            self._answered()
        if self._stream is not None:
            recorder.close_stream(self._stream[0], self.get_code(), error)

    def _answered(self) -> None:
        self.attempt.call.recorder.answered(self.attempt, self.get_code(), self._received)
