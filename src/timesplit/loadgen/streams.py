"""Streams: an answer that goes on. Server-sent events, and WebSockets that are echoed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from time import monotonic_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import websocket

from timesplit.loadgen.attempt import UNFINISHED, error_of
from timesplit.tracecontext import traceparent, tracestate

if TYPE_CHECKING:
    from timesplit.loadgen.recorder import Recorder

_NORMAL: Final = 1000  # close code


class EventParser:
    """Server-sent events, from bytes as they come in (WHATWG HTML § 9.2.6)."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the data of each event that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield from self._line(line.removesuffix(b"\r").decode("utf-8", "replace"))

    def _line(self, line: str) -> Iterator[str]:
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        elif not line and self._data:
            yield "\n".join(self._data)
            self._data = []


@dataclass(eq=False)
class Stream:
    """A row of `streams/` while it grows; the attributes are its columns."""

    trace_id: bytes
    span_id: bytes
    name: str
    stage: str
    kind: Literal["sse", "websocket"]
    opened: int
    first: int | None = None
    messages: int = 0

    def message(self) -> None:
        """Count a message that has come."""
        self.first = self.first or monotonic_ns()
        self.messages += 1

    def row(self, code: int | None, error: str | None) -> dict[str, Any]:
        """Return the row of a stream that ends now.

        Args:
            code: WebSocket close code or HTTP status; None if there was none.
            error: a word of schema.ERRORS, if it did not end well.
        """
        closed = None if error == UNFINISHED else monotonic_ns()
        return asdict(self) | {"side": "client", "closed": closed, "code": code, "error": error}


class WebSocket:
    """A WebSocket that is recorded as a stream. Use it in a `with` block, which opens and closes it."""

    def __init__(self, recorder: Recorder, url: str, name: str, timeout: float) -> None:
        """Prepare it.

        Args:
            recorder: keeps its record.
            url: `ws://…` or `wss://…`.
            name: request name.
            timeout: seconds to wait for the handshake, and for each message.
        """
        self._recorder, self._url = recorder, url
        self._socket = websocket.WebSocket()
        self._socket.settimeout(timeout)
        self._name = name
        self._code: int | None = None

    def send(self, message: str) -> None:
        """Send a text message."""
        self._socket.send(message)

    def receive(self) -> str | None:
        """Wait for the next message and return it; None if the other side closes instead."""
        while True:
            opcode, data = self._socket.recv_data(control_frame=True)
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                self._code = struct.unpack("!H", data[:2])[0] if len(data) >= 2 else None
                return None
            if opcode in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY):
                self._stream.message()
                return str(data, "utf-8", "replace")

    def __enter__(self) -> Self:
        trace_id, span_id = self._recorder.key + self._recorder.new_id(), self._recorder.new_id()
        self._stream = stream = self._recorder.open_stream(
            trace_id, span_id, self._name, "websocket", monotonic_ns()
        )
        headers = {
            "traceparent": traceparent(stream.trace_id, stream.span_id, sampled=True),
            "tracestate": tracestate(stream.span_id),
        }
        try:
            self._socket.connect(self._url, header=headers)
        except BaseException as failure:
            self._end(failure)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if failure is None and self._code is None:
                self._say_goodbye()
        except (OSError, websocket.WebSocketException) as late_failure:
            failure = late_failure
        finally:
            self._end(failure)

    def _say_goodbye(self) -> None:
        self._socket.send_close(_NORMAL)
        while self.receive() is not None:
            pass

    def _end(self, failure: BaseException | None) -> None:
        self._socket.shutdown()
        error = None if failure is None else _websocket_error(failure)
        code = (
            failure.status_code if isinstance(failure, websocket.WebSocketBadStatusException) else self._code
        )
        self._recorder.close_stream(self._stream, code, error)


def _websocket_error(failure: BaseException) -> str:
    match failure:
        case websocket.WebSocketTimeoutException():
            return "timeout"
        case websocket.WebSocketBadStatusException():
            return "status"
        case websocket.WebSocketConnectionClosedException():
            return "reset"
    return error_of(failure)
