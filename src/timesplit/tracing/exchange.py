"""What the SDK's spans do not tell of a request: how it ended, and what a stream carried."""

import logging
import time
from contextvars import ContextVar
from typing import Final

from opentelemetry import context
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

_SEEN: Final = (
    "timesplit.exchange"  # in the scope: a mounted application that is instrumented too adds nothing
)
# Not a value in OpenTelemetry's context: contrib begins each request's context anew.
_current: ContextVar["Exchange | None"] = ContextVar("timesplit.exchange", default=None)


class Exchange:
    """One request or WebSocket, as seen at the outer edge of the application.

    Attributes:
        entered: the application itself was called.
        complete: the last part of the response was sent, or the WebSocket closed by the service.
        stream: `websocket`, `sse`, or None.
        first: when the first message of the stream had been sent, in UTC nanoseconds.
        messages: messages of the stream that the service sent.
        code: close code of a WebSocket.
        raised: an exception left the application.
    """

    __slots__ = ("code", "complete", "entered", "first", "messages", "raised", "stream")

    def __init__(self, stream: str | None) -> None:
        self.entered = False
        self.raised = False
        self.complete = False
        self.stream = stream
        self.first: int | None = None
        self.messages = 0
        self.code: int | None = None

    def watch_send(self, send: Send, *, ends_within: bool = False) -> Send:
        """Return a `send` that notes what has been sent.

        Args:
            send: what sends.
            ends_within: the span ends in there, so it must be noted before.
        """

        async def watched(message: Message) -> None:
            if ends_within:
                self._note_sent(message)
            await send(message)
            if not ends_within:
                self._note_sent(message)

        return watched

    def watch_receive(self, receive: Receive) -> Receive:
        """Return a `receive` that notes by which code the client closed its WebSocket."""

        async def watched() -> Message:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.code = message.get("code")
            return message

        return watched

    def _note_sent(self, message: Message) -> None:
        match message["type"]:
            case "http.response.start":
                self.stream = "sse" if _is_event_stream(message) else None
            case "http.response.body":
                if self.stream and message.get("body"):
                    self._note_message()
                self.complete = not message.get("more_body", False)
            case "http.response.pathsend":
                self.complete = True
            case "websocket.send":
                self._note_message()
            case "websocket.close":
                self.code = message.get("code", 1000)
                self.complete = True

    def _note_message(self) -> None:
        self.messages += 1
        if self.first is None:
            self.first = time.time_ns()


def current_exchange() -> Exchange | None:
    """Return the exchange that the running code serves."""
    return _current.get()


def enter(scope: Scope) -> Exchange | None:
    """Begin the exchange of a request, for the code that runs from here on; None where it is none, or has begun."""
    if scope["type"] not in ("http", "websocket") or _SEEN in scope:
        return None
    scope[_SEEN] = True
    exchange = Exchange("websocket" if scope["type"] == "websocket" else None)
    _current.set(exchange)
    return exchange


def as_exchanges(stack: ASGIApp) -> ASGIApp:
    """Put the layer that knows exchanges around a middleware stack that contrib has instrumented."""
    layer: ASGIApp | None = stack
    while layer is not None:
        if isinstance(layer, OpenTelemetryMiddleware):
            return _Exchanges(layer)
        layer = getattr(layer, "app", None)
    log.warning("no server spans: OpenTelemetry's middleware is not where it used to be")
    return stack


class _Exchanges:
    """The outermost layer.

    It stands in for the error layer that contrib puts around its middleware, because that one answers 500
    where contrib fails on a request, such as one whose `User-Agent` it cannot decode. Here such a request is
    served untraced.
    """

    def __init__(self, traced: OpenTelemetryMiddleware) -> None:
        # FastAPI follows `app` to see contrib's middleware, and keeps its own telemetry silent then.
        self.app = traced
        self._untraced: ASGIApp = traced.app
        traced.app = self._enter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = enter(scope)
        if exchange is None:
            await self._untraced(scope, receive, send)
            return
        if exchange.stream:
            receive = exchange.watch_receive(receive)
        # An empty context: on a kept-alive connection asyncio can hand on the one of the request before, and
        # contrib would take that request's span for the parent of this one.
        token = context.attach(context.Context())
        try:
            await self.app(scope, receive, exchange.watch_send(send))
        except Exception as error:
            if exchange.entered:
                raise
            log.warning(
                "a request is served without a span: OpenTelemetry failed on it (%s)", type(error).__name__
            )
            await self._untraced(scope, receive, send)
        finally:
            _current.set(None)
            context.detach(token)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        if exchange := current_exchange():
            exchange.entered = True
        await self._untraced(scope, receive, send)


def _is_event_stream(message: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in message.get("headers", ())
    )
