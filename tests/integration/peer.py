"""Servers in a thread that stamp when they reply: the truth that accounts of calls are held against."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from timesplit.instrumentation.loop import clock

Answer = Callable[["Peer", socket.socket, bytes], None]


@dataclass
class Peer:
    """A server on loopback.

    Attributes:
        port: where it listens; 0 on a Unix socket.
        asked: when each request had come.
        replied: when each reply was about to be handed to the kernel.
        heads: the requests.
    """

    port: int
    asked: list[int] = field(default_factory=list)
    replied: list[int] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)


def reply(peer: Peer, connection: socket.socket, data: bytes) -> None:
    """Stamp, and send: after the call this thread may have to wait for the interpreter."""
    peer.replied.append(clock())
    connection.sendall(data)


@contextlib.contextmanager
def serving(answer: Answer, path: str = "") -> Iterator[Peer]:
    """Serve on loopback, or on a Unix socket; `answer` is called in a thread for what each `recv` brings."""
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    listener.bind(path or ("127.0.0.1", 0))
    listener.listen(50)
    peer = Peer(0 if path else listener.getsockname()[1])
    open_ones: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                peer.asked.append(clock())
                peer.heads.append(data)
                answer(peer, connection, data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_ones.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield peer
    finally:
        for one in (listener, *open_ones):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def http(head: float = 0.0, body: float = 0.0, chunked: bool = False) -> Answer:
    """Answer HTTP requests: the head after so many seconds, the body after so many more."""

    def answer(peer: Peer, connection: socket.socket, _: bytes) -> None:
        time.sleep(head)
        start, rest = _pieces(chunked)
        if body:
            connection.sendall(start)
            time.sleep(body)
            reply(peer, connection, rest)
        else:
            reply(peer, connection, start + rest)

    return answer


def http_as_asked(peer: Peer, connection: socket.socket, data: bytes) -> None:
    """Answer `GET /0.02` after 0.02 s, and so on."""
    time.sleep(float(data.split()[1][1:]))
    reply(peer, connection, b"".join(_pieces(chunked=False)))


def _pieces(chunked: bool) -> tuple[bytes, bytes]:
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 5"
    return b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n" if chunked else b"hello"
