"""Server spans by FastAPI's own telemetry, from FastAPI 0.165 on, in place of FastAPIInstrumentor's."""

from collections.abc import Callable

from fastapi import FastAPI, __version__
from opentelemetry.sdk.trace import TracerProvider
from starlette.types import ASGIApp, Receive, Scope, Send

from timesplit.errors import UsageError
from timesplit.tracing.exchange import enter


def instrument_natively(app: FastAPI, provider: TracerProvider) -> None:
    """Have FastAPI make spans of the app's requests, and of its dependencies, endpoints and serialisation.

    Raises:
        UsageError: this FastAPI has no telemetry.
    """
    config = getattr(getattr(app, "_native_telemetry", None), "config", None)
    if not isinstance(config, dict):
        raise UsageError(
            f"TIMESPLIT_OTEL=native: FastAPI {__version__} has no telemetry; 0.165 and later have"
        )
    config["tracer_provider"] = provider  # as FastAPI(telemetry={"tracer_provider": ...}) does
    build: Callable[[], ASGIApp] = app.build_middleware_stack
    app.build_middleware_stack = lambda: _Exchanges(build())  # type: ignore[method-assign]  # for this app only


class _Exchanges:
    """The outermost layer below FastAPI's telemetry, whose span ends within the `send` of the last part."""

    def __init__(self, stack: ASGIApp) -> None:
        self.app = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = enter(scope)
        if exchange is None:
            await self.app(scope, receive, send)
            return
        if exchange.stream:
            receive = exchange.watch_receive(receive)
        try:
            await self.app(scope, receive, exchange.watch_send(send, ends_within=not exchange.stream))
        except BaseException:
            exchange.raised = True
            raise
