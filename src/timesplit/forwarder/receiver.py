"""Receives OTLP over HTTP (`opentelemetry.io/docs/specs/otlp`, protobuf) from the workers of this host."""

import gzip
import io
import logging
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final

from timesplit.forwarder.passon import SIGNALS

log = logging.getLogger(__name__)

BODY_BYTES: Final = 16 << 20  # of a request, as sent and after decompression
IDLE_SECONDS: Final = 120.0  # for which a silent connection is kept
_PROTOBUF: Final = "application/x-protobuf"
_DISCARDED_BYTES: Final = 4 * BODY_BYTES  # of a body that is refused, so that its sender gets to read why

Take = Callable[[str, bytes, bytes, str | None], None]


class Refused(Exception):
    """A request that is not taken.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status = status


class Receiver(ThreadingHTTPServer):
    """The HTTP server; it serves in a thread of its own, with one more for each connection."""

    daemon_threads = True  # an idle connection must not keep the process alive
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], take: Take) -> None:
        """Bind and listen; `start` begins to serve.

        Args:
            address: where to listen; port 0 takes a free one.
            take: called from several threads with signal (`traces`, `metrics`, `logs`), body, body as it was
                sent, and its Content-Encoding. Once it returns, the sender is told that all is well.

        Raises:
            OSError: the address is in use, or is none of this host.
        """
        self.take = take
        self._open = 0
        self._stopping = False
        self._changed = threading.Condition()
        super().__init__(address, _Handler)

    def start(self) -> None:
        """Begin to serve."""
        threading.Thread(target=self.serve_forever, name="receiver", daemon=True).start()

    def stop(self, seconds: float) -> None:
        """Accept nothing more, and wait some seconds at most for the requests that are being received."""
        self.shutdown()
        self.server_close()
        with self._changed:
            self._stopping = True
            self._changed.wait_for(lambda: not self._open, seconds)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Hold a request open, unless the server is stopping.

        Raises:
            Refused: it is.
        """
        with self._changed:
            if self._stopping:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the forwarder is stopping")
            self._open += 1
        try:
            yield
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def server_bind(self) -> None:
        """Bind, without asking the name service who we are, as the standard library would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]  # as IPv4 has it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note what broke a connection; its sender will try again."""
        broken = isinstance(sys.exception(), OSError)
        log.log(logging.DEBUG if broken else logging.ERROR, "connection of %s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "timesplit", ""
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(HTTPStatus.OK, "ok")
        else:
            self._answer(
                HTTPStatus.NOT_FOUND, f"there is nothing at {self.path}; use /healthz or POST /v1/traces"
            )

    def do_POST(self) -> None:
        try:
            with self.server.receiving():
                signal = self._signal()
                sent = self._body()
                encoding = self.headers.get("Content-Encoding")
                self.server.take(signal, decompressed(sent, encoding), sent, encoding)
                self._answer(HTTPStatus.OK)
        except Refused as refused:
            self._answer(refused.status, str(refused))

    def _signal(self) -> str:
        signal = self.path.removeprefix("/v1/")
        if signal not in SIGNALS:
            self._discard()
            raise Refused(HTTPStatus.NOT_FOUND, f"there is nothing at {self.path}; post to /v1/traces")
        kind = self.headers.get_content_type()
        if kind != _PROTOBUF:
            self._discard()
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type is {kind}; send {_PROTOBUF}")
        return signal

    def _body(self) -> bytes:
        length = self._length()
        if length > BODY_BYTES:
            self._discard()
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {BODY_BYTES} bytes")
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is shorter than its Content-Length")
        return body

    def _length(self) -> int:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "send the body with a Content-Length")
        return int(length)

    def _discard(self) -> None:
        # A sender that is cut off while it sends never reads the answer.
        self.close_connection = True
        left = min(self._length(), _DISCARDED_BYTES)
        while left and (data := self.rfile.read(min(left, 1 << 16))):
            left -= len(data)

    def _answer(self, status: HTTPStatus, line: str = "") -> None:
        # An empty answer is the protobuf message "all taken".
        body = f"{line}\n".encode() if line else b""
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8" if line else _PROTOBUF)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def decompressed(body: bytes, encoding: str | None) -> bytes:
    """Undo a Content-Encoding.

    Raises:
        Refused: it is not known, the body does not fit it, or is too large without it.
    """
    try:
        match encoding:
            case None | "" | "identity":
                return body
            case "gzip":
                plain = gzip.GzipFile(fileobj=io.BytesIO(body)).read(BODY_BYTES + 1)
            case "deflate":
                stream = zlib.decompressobj()
                plain = stream.decompress(body, BODY_BYTES + 1)
                if not stream.eof and len(plain) <= BODY_BYTES:
                    raise EOFError("it is cut short")
            case _:
                raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Encoding is {encoding}; send gzip")
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is not {encoding}: {error}") from None
    if len(plain) > BODY_BYTES:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {BODY_BYTES} bytes")
    return plain
