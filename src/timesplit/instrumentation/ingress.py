"""A request before its application is called, and its last bytes after: what only the server's connection can tell.

A connection tells when it is made, when data come, when its transport has room again, and when it is lost. When the
first bytes of a request reached the kernel is known well enough from when the loop last looked, where that is not
long ago; else the kernel is asked, which counts in jiffies. Where it cannot tell (a Unix socket, a system without
TCP_INFO) a trusted proxy's `X-Request-Start` can; and where there is none either, it is unknown.
"""

import ipaddress
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from timesplit.instrumentation.journal import Journal
from timesplit.instrumentation.layout import UNKNOWN
from timesplit.instrumentation.loop import SERVING, LoopHooks, clock, here
from timesplit.instrumentation.readiness import JIFFY
from timesplit.instrumentation.request import App, Arrival, Receive, Request, Scope, Send, call

if TYPE_CHECKING:
    from timesplit.instrumentation.agent import Agent

TRUSTED: Final = (
    "TIMESPLIT_TRUSTED_PROXIES"  # addresses or networks, by commas; `unix` for Unix sockets; `*` for all
)
_HEADERS: Final = (b"x-request-start", b"x-queue-start")
_OLDEST: Final = 3600 * 10**9  # ns; an older stamp of a proxy is no stamp
_TCP_INFO: Final = getattr(socket, "TCP_INFO", 11)
# Of struct tcp_info: tcpi_rcv_mss in bytes; tcpi_last_data_sent and tcpi_last_data_recv in ms: the first is, on a
# connection on which nothing was sent, its age.
_INFO: Final = Struct("@20xI20xI4xI")
_IDLE: Final = 100_000  # ns; between the loop's last step and its next look: it had nothing to do
_PARSING: Final = 1_000_000  # ns; more than what lies between data that the loop found at one look
_ATTRIBUTE: Final = "_timesplit"

Function = Callable[..., Any]
Whole = Callable[
    [Any], bool
]  # tells of a protocol whether no request is under way on it of which data could be a part
# Modules of uvicorn, and their protocols: they have `app`, and for each request a new `cycle` that knows whether there
# is `more_body`.
UVICORN: Final = {
    "uvicorn.protocols.http.httptools_impl": "HttpToolsProtocol",
    "uvicorn.protocols.http.h11_impl": "H11Protocol",
    "uvicorn.protocols.http.zttp_impl": "ZttpProtocol",
    "uvicorn.protocols.http.zttp_h2_impl": "ZttpH2Protocol",
}
_GUNICORN: Final = "gunicorn.asgi.protocol"


class Connection:
    """A connection of a server, which stands in for the application that the server calls for its requests.

    Attributes:
        freed: when the last answer on it was complete.
    """

    __slots__ = (
        "_accepted",
        "_app",
        "_data_at",
        "_descriptor",
        "_draining",
        "_first",
        "_fresh",
        "_hooks",
        "_journal",
        "_last",
        "_limits",
        "_made",
        "_request",
        "_seam",
        "_taken",
        "_transport",
        "_trusts",
        "freed",
    )

    def __init__(self, journal: Journal, hooks: LoopHooks, transport: Any, seam: App, app: App) -> None:
        """Prepare.

        Args:
            journal: of this worker.
            hooks: of the connection's loop.
            transport: of the connection.
            seam: what the server would call.
            app: the application itself, where `seam` does no more than a connection does for a request.
        """
        self._journal = journal
        self._seam = seam
        self._hooks = hooks
        self._transport = transport
        self._app = app
        self._descriptor = _descriptor(transport)
        self._trusts = _trusts(transport)
        self._draining: Request | None = None
        self._request: Request | None = None
        self._limits = (0, 0)
        self._taken = self._fresh = True
        self._first = self._last = (UNKNOWN, 0, 0)
        self.freed = 0
        self._accepted = now = clock()
        info = self._info()
        # With the bytes on it, where they were there first: they cannot be older than the connection.
        self._made = now - info[1] if info is not None else 0
        self._data_at = now - info[2] if info is not None else 0

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Call the application, in a request's account."""
        if scope["type"] != "http":
            return self._seam(scope, receive, send)
        try:
            arrival = self._arrival(scope)
        except Exception:
            self._hooks.told.failed()
            arrival = None
        return call(self._journal, self._hooks, self._app, scope, receive, send, arrival)

    def data(self, whole: bool) -> None:
        """Data came.

        Args:
            whole: no request is under way of which they could be a part.
        """
        hooks = self._hooks
        now = clock()
        # The first data since a step, or since nothing: the loop has just looked.
        if hooks.ended > hooks.poll or now - hooks.data > _PARSING:
            hooks.before, hooks.poll = hooks.poll, now
        hooks.data = now
        if not whole:
            self._last = (hooks.poll, now, 0)
            return
        self._last = self._stamps(now)
        if self._taken:
            self._taken = False
            self._first = self._last
        self._fresh = False

    def serve(self, request: Request) -> None:
        """A request's first step begins."""
        self._request = request

    def served(self, request: Request) -> None:
        """A request needs to know no more of its connection."""
        if self._request is request:
            self._request = None

    def unsent(self, request: Request) -> bool:
        """Tell whether bytes are left to send; if so, the request is told when they are sent."""
        transport = self._transport
        if not transport.get_write_buffer_size():
            return False
        self._limits = transport.get_write_buffer_limits()
        self._draining = request
        try:
            # With no room at all, the transport tells when the last byte has gone.
            transport.set_write_buffer_limits(high=0, low=0)
        except Exception:
            self._draining = None
            raise
        return self._draining is not None  # some transports write on being asked

    def room(self) -> None:
        """The transport has room again."""
        request = self._draining
        if request is not None and not self._transport.get_write_buffer_size():
            self._draining = None
            low, high = self._limits
            if not self._transport.is_closing():
                self._transport.set_write_buffer_limits(high=high, low=low)
            request.drained(clock())

    def lost(self, error: BaseException | None) -> None:
        """The connection ended."""
        now = clock()
        draining, self._draining = self._draining, None
        if draining is not None:
            draining.drained(now, complete=error is None)
        if self._request is not None:
            self._request.left(now)

    def _arrival(self, scope: Scope) -> Arrival:
        """Return the arrival of the request that is called just now."""
        last = self._last
        arrived, received, uncertain = last if self._taken else self._first
        self._taken = True
        accepted, self._accepted = self._accepted, 0  # of the first request on the connection only
        if arrived == UNKNOWN and self._trusts:
            arrived = proxied(scope["headers"], time.time_ns() - clock())
            uncertain = max(received - arrived, 0)
        if arrived == UNKNOWN or not received:
            return self, UNKNOWN, 0, 0, 0, 0, 0
        # On one clock, but not in order where the kernel counts in jiffies.
        arrived = min(arrived, received)
        accepted = min(max(accepted, arrived), received)
        return self, arrived, accepted, received, max(last[0], received), max(last[1], received), uncertain

    def _stamps(self, now: int) -> tuple[int, int, int]:
        """Return when the data that are read now arrived, when they were read, and how uncertain that is."""
        if self._descriptor < 0:
            return UNKNOWN, now, 0
        hooks = self._hooks
        poll = hooks.poll
        # Not before the loop looked last, nor before the answer to the request before, for which the client waited.
        earliest = max(hooks.before, self.freed)
        idle = poll - hooks.ended > _IDLE and not hooks.starved
        if self._fresh or now - earliest > 2 * JIFFY:
            return self._asked(now, poll, earliest, idle)
        if idle:
            return poll, now, 0
        half = max(poll - earliest, 0) // 2
        return poll - half, now, half

    def _asked(self, now: int, poll: int, earliest: int, idle: bool) -> tuple[int, int, int]:
        """Ask the kernel when the data arrived."""
        info = self._info()
        if info is None:
            return UNKNOWN, now, 0
        age = info[2]
        # An age of one jiffy means anything up to two; but an idle loop is woken at once.
        arrived = poll if idle and age < 2 * JIFFY else min(now - age, poll)
        if self._fresh:
            # Of several pieces the kernel tells of the last; what was there at the accept came before.
            earliest = self._made
            if self._data_at > self._made + JIFFY:
                arrived = min(arrived, self._data_at)
        arrived = max(arrived, earliest)
        return arrived, now, 0 if arrived == poll else min(JIFFY, max(now - earliest, 0))

    def _info(self) -> tuple[int, int, int] | None:
        """Return (bytes a segment, age of the connection or its last answer, age of the last data) in bytes and ns."""
        if self._descriptor < 0:
            return None
        # Family and type are given, or the constructor would ask the kernel for them.
        asked = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=self._descriptor)
        try:
            mss, sent, received = _INFO.unpack_from(asked.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 60))
        except OSError:  # no TCP, or a system that does not tell
            self._descriptor = -1
            return None
        finally:
            asked.detach()
        return mss, sent * 1_000_000, received * 1_000_000


def arm_uvicorn(agent: "Agent") -> None:
    """Arm the protocols of uvicorn that are imported."""
    for module, name in UVICORN.items():
        if module in sys.modules:
            _arm(agent, module, name, _whole_cycle)
            _count_refused(agent, module)
            cycle = getattr(sys.modules[module], "RequestResponseCycle", None)
            _serves(getattr(cycle, "run_asgi", None))


def arm_gunicorn(agent: "Agent") -> None:
    """Arm the protocol of gunicorn's ASGI worker."""
    _arm(agent, _GUNICORN, "ASGIProtocol", _whole_receiver)
    owner = sys.modules[_GUNICORN].ASGIProtocol
    for method in ("_handle_http_request", "_handle_connection"):
        _serves(getattr(owner, method, None))


def proxied(headers: list[tuple[bytes, bytes]], offset: int) -> int:
    """Return when a proxy had a request, by its header: seconds, ms or µs of UTC, with or without `t=`.

    Args:
        headers: of the request, names in lower case.
        offset: UTC minus the monotonic clock, in ns.

    Returns:
        The instant on the monotonic clock; UNKNOWN where there is no such header, or no such time.
    """
    value = next((value for name, value in headers if name in _HEADERS), None)
    if value is None:
        return UNKNOWN
    try:
        stamp = float(value.strip().removeprefix(b"t="))
    except ValueError:
        return UNKNOWN
    now = clock()
    for unit in (1_000_000_000, 1_000_000, 1_000, 1):
        at = int(stamp * unit) - offset if stamp < 1e19 else 0
        if 0 <= now - at < _OLDEST:
            return at
    return UNKNOWN


def _arm(agent: "Agent", module: str, name: str, whole: Whole) -> None:
    owner = getattr(sys.modules[module], name, None)
    if owner is None:
        return
    makes: dict[str, Callable[[Function], Function]] = {
        "connection_made": partial(_made, agent),
        "data_received": partial(_data, whole),
        "resume_writing": _room,
        "connection_lost": _lost,
    }
    for method, make in makes.items():
        agent.hooks.replace(f"{module.partition('.')[0]} {name}.{method}", owner, method, make)


def _made(agent: "Agent", original: Function) -> Function:
    def connection_made(self: Any, transport: Any) -> Any:
        try:
            if agent.armed:
                _connect(agent, self, transport)
        except Exception:
            _failed()
        return original(self, transport)

    return connection_made


def _data(whole: Whole, original: Function) -> Function:
    def data_received(self: Any, data: bytes) -> Any:
        try:
            connection = getattr(self, _ATTRIBUTE, None)
            if connection is not None:
                connection.data(whole(self))
        except Exception:
            _failed()
        return original(self, data)

    return data_received


def _room(original: Function) -> Function:
    def resume_writing(self: Any) -> Any:
        returned = original(self)
        try:
            connection = getattr(self, _ATTRIBUTE, None)
            if connection is not None:
                connection.room()
        except Exception:
            _failed()
        return returned

    return resume_writing


def _lost(original: Function) -> Function:
    def connection_lost(self: Any, exc: BaseException | None) -> Any:
        try:
            connection = getattr(self, _ATTRIBUTE, None)
            if connection is not None:
                connection.lost(exc)
        except Exception:
            _failed()
        return original(self, exc)

    return connection_lost


def _failed() -> None:
    if here.loop is not None:
        here.loop.told.failed()


def _connect(agent: "Agent", protocol: Any, transport: Any) -> None:
    if here.loop is None:
        agent.enter_loop()
    if here.loop is not None:
        seam = protocol.app
        connection = Connection(agent.journal, here.loop, transport, seam, agent.application(seam))
        setattr(protocol, _ATTRIBUTE, connection)
        protocol.app = connection


def _count_refused(agent: "Agent", module: str) -> None:
    """Count the requests that uvicorn refuses because it has too many already."""

    def make(original: Function) -> Function:
        def service_unavailable(*args: Any, **kwargs: Any) -> Any:
            try:
                agent.journal.refused()
            except Exception:
                return original(*args, **kwargs)
            return original(*args, **kwargs)

        return service_unavailable

    owner = sys.modules[module]
    agent.hooks.replace(f"{module} service_unavailable", owner, "service_unavailable", make)


def _serves(function: Any) -> None:
    """Note that a coroutine function runs a server's requests: its tasks are driven inside."""
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    if code is not None:
        SERVING[id(code)] = code


def _whole_cycle(protocol: Any) -> bool:
    cycle = protocol.cycle
    return cycle is None or not cycle.more_body


def _whole_receiver(protocol: Any) -> bool:
    receiver = protocol._body_receiver
    return receiver is None or receiver._complete


def _descriptor(transport: Any) -> int:
    """Return a TCP transport's file descriptor, else -1."""
    found = transport.get_extra_info("socket")
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return -1
    return int(found.fileno()) if sys.platform == "linux" else -1


def _trusts(transport: Any) -> bool:
    """Tell whether the peer is a proxy whose stamps are believed."""
    trusted = [name.strip() for name in os.environ.get(TRUSTED, "").split(",") if name.strip()]
    if not trusted:
        return False
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return "unix" in trusted or "*" in trusted
    return "*" in trusted or any(_is_in(peer[0], network) for network in trusted)


def _is_in(address: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
