"""A request from its first step to its record: the ASGI call, wrapped once, at the outermost application.

One `Request` holds the ids, the response's facts and the request's own strand. It wraps `send` to see status and
last byte, `receive` to see waits for the client, and hands its account to the journal when all its work is over.
"""

from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from contextlib import suppress
from types import CoroutineType, coroutine
from typing import Any, Protocol

from timesplit.instrumentation import foreign
from timesplit.instrumentation.journal import Journal
from timesplit.instrumentation.layout import ENDED_BY, UNKNOWN
from timesplit.instrumentation.ledger import OTHER_WAIT, ROUTE, Segment, Strand, split
from timesplit.instrumentation.loop import clock, drive, drives, here
from timesplit.parts import CODES, SERVER_PARTS

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

MARK = "timesplit"  # key in the ASGI scope: what the protocol stamped, then that a request has its record
_ACCEPT, _READ, _RECEIVE, _SEND = (CODES[name] for name in ("accept", "read", "receive", "send"))
_RESPONSE, _DISCONNECT, _EXCEPTION = (
    ENDED_BY.index(name) for name in ("response", "disconnect", "exception")
)
_PARTS = len(SERVER_PARTS)
_STATE_PREFIX = b"timesplit="


class Arrival(Protocol):
    """What the protocol could stamp before the application was called. Times in ns, -1 unknown.

    Attributes:
        arrived: when the request's first bytes reached the kernel.
        accepted: when the connection was taken from the accept queue; `arrived` on a reused one.
        received: when the worker read those bytes.
        uncertain_ns: how much of the waits before `received` could belong elsewhere.
    """

    arrived: int
    accepted: int
    received: int
    uncertain_ns: int


class Request:
    """The record of a request under way.

    Attributes:
        route: template of the route that was chosen, with all its prefixes; empty while none was.
        mounted: the prefix under which the application is mounted that the request has got to.
        foreign: server span of the application's own tracing, or None.
    """

    __slots__ = (
        "_receive",
        "_send",
        "_sender",
        "arrival",
        "ended",
        "ended_by",
        "foreign",
        "journal",
        "mounted",
        "number",
        "query_count",
        "root",
        "route",
        "route_cpu",
        "scope",
        "slot",
        "status",
        "uncertain",
        "upstream_count",
    )

    def __init__(self, journal: Journal, scope: Scope, receive: Receive, send: Send) -> None:
        now = clock()
        self.journal = journal
        self.scope = scope
        self.arrival: Arrival | None = scope.get(MARK)
        scope[MARK] = True  # not self: record, send and scope would make a cycle
        self._receive = receive
        self._send = send
        self.status = self.ended = self.query_count = self.upstream_count = self.uncertain = 0
        self.route_cpu = UNKNOWN
        self.route = self.mounted = ""
        self.foreign: Any = None
        self.ended_by = _EXCEPTION
        self.root = self._sender = Strand(now, request=self)
        self.slot, self.number = journal.open(now, *_ids(scope))

    def send(self, message: Message) -> Awaitable[None]:
        """See the status and the last byte, and charge a full transport to `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return self._send(message)
        return self._sending(message, not message.get("more_body", False))

    @coroutine
    def _sending(self, message: Message, last: bool) -> Generator[Any, Any, None]:
        strand = here.strand or self.root
        before = strand.part, strand.label
        strand.part, strand.label = _SEND, ""
        try:
            yield from self._send(message).__await__()
        finally:
            strand.part, strand.label = before
        if last and not self.ended:
            self.ended = clock()
            self.ended_by = _RESPONSE
            self._sender = strand
            if self.foreign is not None:
                self._tell_foreign()

    @coroutine
    def receive(self) -> Generator[Any, Any, Message]:
        """Charge waits for the client's bytes to `receive`, and see it leave."""
        strand = here.strand or self.root
        before = strand.part, strand.label
        strand.part, strand.label = _RECEIVE, ""
        try:
            message = yield from self._receive().__await__()
        finally:
            strand.part, strand.label = before
        if message["type"] == "http.disconnect" and not self.ended:
            self.ended = clock()
            self.ended_by = _DISCONNECT
        return message

    def _tell_foreign(self) -> None:
        """Set the parts on the application's own server span: it ends when `send` has returned."""
        try:
            segments = self._ingress()
            segments += split(self._sender, self.root.born, self.ended)
            foreign.tell(self.foreign, segments)
        except Exception:  # whatever the span's processors do
            self.failed()

    def failed(self) -> None:
        """Count an error of ours."""
        with suppress(Exception):  # the journal can be closed already
            self.journal.failed()

    def close(self, now: int) -> None:
        """Write the account; called when the ASGI call is over."""
        root = self.root
        end = self.ended or now
        segments = self._ingress()
        segments += split(self._sender, root.born, end)
        totals = [0] * _PARTS
        for part, _, start, until in segments:
            totals[part] += until - start
        if self.arrival is None:
            totals[_ACCEPT] = totals[_READ] = UNKNOWN
        self.journal.close(
            self.slot, self.number, now, self._facts(now, end, segments, totals), self._kept(segments)
        )

    def _ingress(self) -> list[Segment]:
        """The stretch before the first step, where its edges are known."""
        found = self.arrival
        if found is None:
            return []
        edges = (
            (_ACCEPT, found.arrived, found.accepted),
            (_READ, found.accepted, found.received),
            (CODES["loop"], found.received, self.root.born),
        )
        return [Segment(part, "", start, end) for part, start, end in edges if end > start]

    def _facts(self, now: int, end: int, segments: list[Segment], totals: list[int]) -> list[int]:
        text, scope = self.journal.text, self.scope
        other = max((s for s in segments if s.part == OTHER_WAIT), key=_length, default=None)
        return [
            end,
            now,
            self.arrival.arrived if self.arrival else UNKNOWN,
            text(self.route or _template_in(scope)),
            text(scope["method"]),
            self.status or (500 if self.ended_by == _EXCEPTION else 0),
            self.ended_by,
            self.route_cpu,
            self.uncertain,
            self.query_count,
            self.upstream_count,
            text(other.label) if other else 0,
            *foreign.ids(self.foreign),
            len(segments),
            *totals,
        ]

    def _kept(self, segments: list[Segment]) -> list[tuple[int, int, int, int]]:
        text = self.journal.text
        return [(part, text(label), start, end) for part, label, start, end in segments]


async def call(journal: Journal, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Call the application in a request's account."""
    try:
        request = Request(journal, scope, receive, send)
        drives(request.root)
    except Exception:
        journal.failed()
        await app(scope, receive, send)
        return
    try:
        called = app(scope, request.receive, request.send)
        # An application may answer its call with any awaitable; a coroutine can be driven.
        await drive(request.root, called if called.__class__ is CoroutineType else _awaiting(called))
    finally:
        try:
            request.close(clock())
        except Exception:
            request.failed()


async def _awaiting(called: Awaitable[None]) -> None:
    await called


def _template_in(scope: Scope) -> str:
    """Return the route's template where the framework leaves it in the scope, else the empty string."""
    found = scope.get("path_template") or getattr(scope.get("route"), "path", "")  # Litestar; others
    return found if isinstance(found, str) else ""


def _length(segment: Segment) -> int:
    return segment.end - segment.start


def _ids(scope: Scope) -> tuple[bytes, bytes]:
    """Return the raw traceparent and our mark in tracestate, empty where they are missing."""
    parent = state = b""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            parent = value
        elif name == b"tracestate" and _STATE_PREFIX in value:
            state = value.partition(_STATE_PREFIX)[2][:16]
    return parent, state


__all__ = ["MARK", "ROUTE", "Arrival", "Request", "call"]
