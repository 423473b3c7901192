"""A request from its first step to its record: the ASGI call, wrapped once, at the outermost application.

A `Request` is the request's own strand, with its ids and the response's facts. It wraps `send` to see status and last
byte, `receive` to see waits for the client, and hands its account to the journal when the call is over and the last
byte has gone to the kernel, whichever is later.
"""

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from types import CoroutineType
from typing import Any, Final, Protocol

from timesplit.instrumentation import foreign
from timesplit.instrumentation.journal import Journal
from timesplit.instrumentation.layout import ANSWERED, ENDED_BY, STREAM_KINDS, UNKNOWN
from timesplit.instrumentation.ledger import (
    LOOP,
    OTHER_WAIT,
    ROUTE,
    Nowhere,
    Segment,
    Strand,
    Wait,
    split,
    summed,
)
from timesplit.instrumentation.loop import LONG_STEP, LoopHooks, clock
from timesplit.parts import CODES, SERVER_PARTS

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

MARK: Final = "timesplit"  # key in the ASGI scope: the request has its record
MANY_SEGMENTS: Final = 120  # in the journal; further ones are summed up
PIPELINED: Final = "pipelined"
_ACCEPT, _READ, _RECEIVE, _SEND = (CODES[name] for name in ("accept", "read", "receive", "send"))
_RESPONSE, _DISCONNECT, _EXCEPTION = (
    ENDED_BY.index(name) for name in ("response", "disconnect", "exception")
)
_SSE: Final = STREAM_KINDS.index("sse")
_NO_TOTALS: Final = (0,) * len(SERVER_PARTS)
_STATE_PREFIX: Final = b"timesplit="


class Connection(Protocol):
    """The connection on which a request came, where the server's protocol is known.

    Attributes:
        freed: when the last answer on it was complete: a request that was there already waited for that.
    """

    freed: int

    def serve(self, request: "Request") -> None:
        """A request's first step begins."""

    def unsent(self, request: "Request") -> bool:
        """Tell whether bytes are left to send; if so, `request.drained` is called when they are sent."""

    def served(self, request: "Request") -> None:
        """A request needs to know no more of its connection."""


# What the server's protocol stamped, in ns: the connection; when the first bytes reached the kernel; when the
# connection was taken from the accept queue (on a reused one as `arrived`); when the worker read those bytes; when the
# last bytes of the request's head reached the kernel, and when they were read; how much of these waits could belong
# elsewhere. The second is UNKNOWN where it could not be found out, and the others are nothing then.
Arrival = tuple[Connection, int, int, int, int, int, int]


class Request(Strand):
    """The record of a request under way.

    Attributes:
        route: template of the route that was chosen, with all its prefixes; empty while none was.
        mounted: the prefix under which the application is mounted that the request has got to.
        foreign: server span of the application's own tracing, or None.
        uncertain: how much of its waits could belong elsewhere, in ns.
        sent: when `send` had returned for the last byte, or the client was seen to be gone; 0 until then.
        answered: when that byte had gone to the kernel; 0 until then.
    """

    # On the class, as in Strand: most requests never set most of these.
    route = mounted = ""
    foreign: Any = None
    connection: Connection | None = None
    status = query_count = upstream_count = uncertain = 0
    sent = answered = blocked = 0
    ended_by = _EXCEPTION
    messages = stream_first = stream_last = 0
    _arrived = UNKNOWN
    _accepted = _received = _headed = _read = _freed = 0
    _head: Any = ()
    _long = _busy_before = _busy_gone = _since = 0
    _settled = _written = _over = False
    _sender: Strand | None = None
    _folded: tuple[Segment, ...] = ()

    def __init__(
        self,
        journal: Journal,
        hooks: LoopHooks,
        scope: Scope,
        receive: Receive,
        send: Send,
        arrival: "Arrival | None" = None,
    ) -> None:
        self.born = self._since = now = clock()
        self.waits: list[Wait] = []
        self.children: list[Strand] = []
        self.request = self  # till it is over, then the cycle is broken
        self.journal = journal
        self.hooks = hooks
        self.scope = scope
        scope[MARK] = True
        self._receive = receive
        self._send = send
        self.traceparent, self.client_span = ids(scope)
        self.slot, self.number = journal.open(now, self.traceparent, self.client_span)
        if arrival is not None:
            self.connection, self._arrived, self._accepted, self._received, *rest = arrival
            self._headed, self._read, self.uncertain = rest
            self._freed = self.connection.freed
            self.connection.serve(self)

    def send(self, message: Message) -> Awaitable[None]:
        """See the status and the last byte, and charge a full transport to `send`."""
        kind = message.get("type")
        if kind == "http.response.body":
            return self._sending(message, not message.get("more_body", False))
        if kind == "http.response.start":
            self.status = message.get("status", 0)
            self._head = message.get("headers", ())
        return self._send(message)

    async def _sending(self, message: Message, last: bool) -> None:
        strand = self.hooks.strand or self
        part, label = strand.part, strand.label
        strand.part = _SEND
        strand.label = ""
        try:
            await self._send(message)
        finally:
            strand.part = part
            strand.label = label
        try:
            if last:
                self._complete(strand)
            elif message.get("body"):
                self._streamed(strand)
        except Exception:
            self.failed()

    async def receive(self) -> Message:
        """Charge waits for the client's bytes to `receive`, and see it leave."""
        strand = self.hooks.strand or self
        before = strand.part, strand.label
        strand.part, strand.label = _RECEIVE, ""
        try:
            message = await self._receive()
        finally:
            strand.part, strand.label = before
        if not self.sent and message.get("type") == "http.disconnect":
            self.left(clock())
        return message

    def left(self, now: int) -> None:
        """The client is gone: what the request does from now on, nobody waits for."""
        if not self.sent:
            self._sender = self
            self.ended_by = _DISCONNECT
            self._end(now)
            self.answered = now

    def drained(self, now: int, complete: bool = True) -> None:
        """The last byte of the response went to the kernel, or will never do so."""
        if not self.answered:
            self.answered = now
            if not complete:
                self.ended_by = _DISCONNECT
            if self._over:
                self._close()

    def failed(self) -> None:
        """Count an error of ours."""
        with suppress(Exception):  # the journal can be closed already
            self.journal.failed()

    def long_step(self, start: int, end: int, cpu: int) -> None:
        """Note that a step of one of its strands was long, and how much of it was not CPU time."""
        self._long += end - start
        blocked = end - start - cpu
        if self.sent:  # of a step in which the response was sent, its share until then
            blocked = blocked * max(min(self.sent, end) - start, 0) // (end - start)
        self.blocked += blocked

    def note(self, part: int, since: int) -> None:
        """Keep the journal's word of what it does just now."""
        if not self.sent:
            try:
                self.journal.doing(self.slot, part, since)
            except Exception:
                self.failed()

    def step(self, now: int) -> None:
        """A step starts; of one after the response, only busy time counts."""
        super().step(now)
        if self.sent and not self._settled:
            try:
                self._settle()
            except Exception:
                self.failed()

    def many_waits(self, strand: Strand, now: int) -> None:
        """Sum up what has been so far: what is kept of a response in many pieces stays little."""
        try:
            if not self._settled:
                self._fold(strand, now)
        except Exception:
            self.failed()

    def over(self, now: int, error: BaseException | None) -> None:
        """The ASGI call returned, or raised `error`: write the account, unless bytes are still to be sent."""
        self.ended = now
        self._over = True
        if not self.sent:
            self._sender = self
            self._end(now)
            self.answered = now
        elif error is not None and not self._settled and self.ended_by == _RESPONSE:
            self.ended_by = _EXCEPTION
        if self.answered:
            self._close()

    def child_over(self, child: Strand) -> None:
        """A task that it started is over; once the account is made, it is no more than busy time."""
        if self._settled:
            self._forget_ended()

    def _complete(self, sender: Strand) -> None:
        """The last byte was given to the server's transport."""
        now = clock()
        if self.sent:
            self.stream_last = now
            return
        if sender is not self:
            self._sender = sender
        self.ended_by = _RESPONSE
        self._end(now)
        if not self._unsent():
            self.answered = now
        if self.foreign is not None:
            foreign.tell(self.foreign, self._ingress() + self._account(now))

    def _unsent(self) -> bool:
        if self.connection is None:
            return False
        try:
            return self.connection.unsent(self)
        except Exception:  # a transport that cannot tell
            self.failed()
            return False

    def _streamed(self, sender: Strand) -> None:
        """A piece of the response was sent: an event stream is answered with its first."""
        if self._head:
            head, self._head = self._head, ()
            if not self.sent and _is_event_stream(head):
                self._sender = sender
                self.ended_by = _RESPONSE
                self.stream_first = self.answered = now = clock()
                self._end(now)
        if self.stream_first:
            self.messages += 1

    def _end(self, now: int) -> None:
        """The request's own time ends here; what comes after has an account of its own."""
        self.sent = now
        hooks = self.hooks
        strand = hooks.strand
        self._busy_before = self._busy()
        if strand is not None and strand.request is self:
            self._busy_before += now - hooks.since
        self.journal.doing(self.slot, ANSWERED, now)
        if self.connection is not None:
            self.connection.freed = now

    def _busy(self) -> int:
        busy = self.busy + self._busy_gone
        return busy + sum(child.busy for child in self.children) if self.children else busy

    def _settle(self) -> None:
        """Keep no more of waits and tasks: the account is made, and after it only busy time counts."""
        self._settled = True
        if self.answered:
            self._write()
        else:
            self._folded = (*self._account(self.sent),)
            self._since = self.sent
        self._forget_ended()
        for strand in self.strands:
            strand.waits = Nowhere()

    def _fold(self, strand: Strand, now: int) -> None:
        if not self.sent:
            self._folded = (*summed([*self._folded, *split(strand, self._since, now)]),)
            self._since = now
        for strand in self.strands:
            strand.waits.clear()
        self._forget_ended()

    def _forget_ended(self) -> None:
        for child in [child for child in self.children if child.ended]:
            self.children.remove(child)
            self._busy_gone += child.busy

    def _close(self) -> None:
        """All is over: write what is not written yet, and let go of everything."""
        now, busy = self.ended, self._busy()
        try:
            if not self._written:
                self._write()
            self.hooks.told.short_steps(self.scope["method"], self.route, busy - self._long, now)
            if self.stream_first or now - self.sent >= LONG_STEP:
                self._write_after(now, busy)
        except Exception:
            self.failed()
        if self.connection is not None:
            self.connection.served(self)
        self.request = None  # what still runs for it is nobody's
        if self.children:
            for child in self.children:
                child.waits = Nowhere()
                child.request = None
            self.children.clear()

    def _write(self) -> None:
        """Write the account."""
        self._written = True
        text, scope = self.journal.text, self.scope
        segments = self._ingress() + self._account(self.answered)
        if len(segments) > MANY_SEGMENTS:
            segments = segments[: MANY_SEGMENTS // 2] + summed(segments[MANY_SEGMENTS // 2 :])
        totals = [*_NO_TOTALS]
        flat: list[int] = []
        other, longest = "", 0
        for part, label, start, end in segments:
            totals[part] += end - start
            flat += (part, text(label) if label else 0, start, end)
            if part == OTHER_WAIT and end - start > longest:
                other, longest = label, end - start
        cpu = max(totals[ROUTE] - self.blocked, 0)
        if self._arrived == UNKNOWN:
            totals[_ACCEPT] = totals[_READ] = UNKNOWN
        fields = (
            self.answered,
            self.ended or self.answered,
            self._arrived,
            text(self.route or _template_in(scope)),
            text(scope["method"]),
            self.status or (500 if self.ended_by == _EXCEPTION else 0),
            self.ended_by,
            cpu,
            self.uncertain,
            self.query_count,
            self.upstream_count,
            text(other) if other else 0,
            *(_NOT_FOREIGN if self.foreign is None else foreign.ids(self.foreign)),
            len(segments),
            *totals,
        )
        self.journal.close(self.slot, self.number, self.answered, fields, flat)
        self.slot = 0

    def _account(self, end: int) -> list[Segment]:
        """Return the segments from the first step to the end."""
        if not self.waits and not self.children and not self._folded:
            segments = [Segment(ROUTE, "", self._since, self.sent)] if self.sent > self._since else []
        else:
            segments = [*self._folded, *split(self._sender or self, self._since, self.sent)]
        if end > self.sent:
            segments.append(Segment(_SEND, "", self.sent, end))
        return segments

    def _ingress(self) -> list[Segment]:
        """Return the segments before the first step, where their edges are known."""
        at = self._arrived
        if at == UNKNOWN:
            return []
        segments = []
        if self._accepted > at:
            segments.append(Segment(_ACCEPT, "", at, self._accepted))
            at = self._accepted
        if self._received > at:
            segments.append(Segment(_READ, "", at, self._received))
            at = self._received
        if self._read > at:  # the head came in pieces
            segments.append(Segment(_RECEIVE, "", at, self._headed))
            segments.append(Segment(_READ, "", self._headed, self._read))
            segments = [segment for segment in segments if segment.end > segment.start]
            at = self._read
        if self._freed > at:
            free = min(self._freed, self.born)
            segments.append(Segment(OTHER_WAIT, PIPELINED, at, free))
            at = free
        if self.born > at:
            segments.append(Segment(LOOP, "", at, self.born))
        return segments

    def _write_after(self, now: int, busy: int) -> None:
        """Write the account of the work after the response, and of the stream that the response was."""
        since, after = self.sent, max(busy - self._busy_before, 0)
        if self.stream_first:
            since, after = self.stream_last or now, UNKNOWN
            self._write_stream(since)
        if now - since >= LONG_STEP:
            route = self.journal.text(self.route or _template_in(self.scope))
            self.journal.after(self.number, since, now, after, route)

    def _write_stream(self, closed: int) -> None:
        self.journal.stream(
            self.number,
            self.traceparent,
            self.client_span,
            _SSE,
            self.born if self._arrived == UNKNOWN else self._arrived,
            self.stream_first,
            self.messages,
            closed,
            self.status,
            self.journal.text(self.route or _template_in(self.scope)),
        )


def call(
    journal: Journal,
    hooks: LoopHooks,
    app: App,
    scope: Scope,
    receive: Receive,
    send: Send,
    arrival: Arrival | None = None,
) -> Awaitable[None]:
    """Call the application in a request's account."""
    try:
        request = Request(journal, hooks, scope, receive, send, arrival)
    except Exception:
        journal.failed()
        return app(scope, receive, send)
    return hooks.drive(request, coroutine(app(scope, request.receive, request.send)))


def coroutine(called: Awaitable[None]) -> Coroutine[Any, Any, None]:
    """Return what can be driven: an application may answer its call with any awaitable."""
    return called if called.__class__ is CoroutineType else _awaiting(called)


async def _awaiting(called: Awaitable[None]) -> None:
    await called


def _template_in(scope: Scope) -> str:
    """Return the route's template where the framework leaves it in the scope, else the empty string."""
    found = scope.get("path_template") or getattr(scope.get("route"), "path", "")  # Litestar; others
    return found if isinstance(found, str) else ""


def _is_event_stream(headers: Any) -> bool:
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in headers
    )


def ids(scope: Scope) -> tuple[bytes, bytes]:
    """Return the raw traceparent and our mark in tracestate, empty where they are missing."""
    parent = state = b""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            parent = value
        elif name == b"tracestate" and _STATE_PREFIX in value:
            state = value.partition(_STATE_PREFIX)[2][:16]
    return parent, state


_NOT_FOREIGN: Final = foreign.ids(None)
