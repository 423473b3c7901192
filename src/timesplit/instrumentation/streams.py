"""WebSockets: no request with a response time, but a stream, whose steps can make requests wait.

Event streams are requests up to their first bytes; what `request` writes of them afterwards has the same record.
"""

from collections.abc import Awaitable
from contextlib import suppress
from itertools import count
from typing import Any, Final

from timesplit.instrumentation.journal import Journal
from timesplit.instrumentation.layout import STREAM_KINDS
from timesplit.instrumentation.ledger import Nowhere, Strand
from timesplit.instrumentation.loop import LoopHooks, clock
from timesplit.instrumentation.request import MARK, App, Message, Receive, Scope, Send, coroutine, ids

_WEBSOCKET: Final = STREAM_KINDS.index("websocket")
_numbers = count(-1, -1)  # apart from the requests', which are counted by theirs


class WebSocket(Strand):
    """The record of a WebSocket under way. What it waits for is not kept: it may live for days."""

    route = mounted = ""
    foreign: Any = None
    query_count = upstream_count = uncertain = 0
    messages = first = code = 0
    _long = 0

    def __init__(
        self, journal: Journal, hooks: LoopHooks, scope: Scope, receive: Receive, send: Send
    ) -> None:
        super().__init__(clock())
        self.request = self  # till it is over
        self.waits = Nowhere()
        self.children = Nowhere()
        self.journal = journal
        self.hooks = hooks
        self.scope = scope
        scope[MARK] = True
        self.number = next(_numbers)
        self.traceparent, self.client_span = ids(scope)
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """See the messages that come, and the end."""
        message = await self._receive()
        kind = message.get("type")
        if kind == "websocket.receive":
            self._count()
        elif kind == "websocket.disconnect":
            self.code = self.code or message.get("code") or 0
        return message

    async def send(self, message: Message) -> None:
        """See the messages that are sent, and the end."""
        await self._send(message)
        kind = message.get("type")
        if kind == "websocket.send":
            self._count()
        elif kind == "websocket.close":
            self.code = self.code or message.get("code", 1000)

    def failed(self) -> None:
        """Count an error of ours."""
        with suppress(Exception):
            self.journal.failed()

    def long_step(self, start: int, end: int, cpu: int) -> None:
        """Note that one of its steps was long."""
        self._long += end - start

    def over(self, now: int, error: BaseException | None) -> None:
        """The ASGI call is over."""
        self.end(now)
        self.request = None
        self.hooks.told.short_steps("WS", self.route, max(self.busy - self._long, 0), now)
        route = self.journal.text(self.route)
        ids_ = (self.number, self.traceparent, self.client_span)
        self.journal.stream(*ids_, _WEBSOCKET, self.born, self.first, self.messages, now, self.code, route)

    def _count(self) -> None:
        self.messages += 1
        if not self.first:
            self.first = clock()


def call(
    journal: Journal, hooks: LoopHooks, app: App, scope: Scope, receive: Receive, send: Send
) -> Awaitable[None]:
    """Call the application for a WebSocket, and record it."""
    try:
        stream = WebSocket(journal, hooks, scope, receive, send)
    except Exception:
        journal.failed()
        return app(scope, receive, send)
    return hooks.drive(stream, coroutine(app(scope, stream.receive, stream.send)))
